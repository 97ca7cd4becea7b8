//! Gets a vCPU out of the guest from another thread.

use std::{
    io,
    mem::offset_of,
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

const PAGE_BYTES: usize = 4096;

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The signal that interrupts `KVM_RUN`. Its handler does nothing; that it is handled is what ends
/// the system call.
///
/// # Errors
/// When the handler cannot be installed.
pub fn signal() -> io::Result<i32> {
    static INSTALLED: OnceLock<Result<i32, i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let number = SIGRTMIN();
            register_signal_handler(number, ignore)
                .map(|()| number)
                .map_err(|error| error.errno())
        })
        .map_err(io::Error::from_raw_os_error)
}

/// The `immediate_exit` flag of a vCPU (KVM API §5): while it is set, `KVM_RUN` returns at once.
/// With it a kick that comes just before `KVM_RUN` is not lost.
///
/// A mapping of its own, so that it stays valid however long the vCPU lives.
#[derive(Debug)]
pub struct ImmediateExit(NonNull<libc::c_void>);

// SAFETY: the mapping is owned and moves with the value.
unsafe impl Send for ImmediateExit {}
// SAFETY: the mapping is accessed through an atomic only.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// Maps the flag of `vcpu`.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page)
            .map(Self)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Sets or clears the flag.
    pub fn set(&self, on: bool) {
        self.flag().store(u8::from(on), Ordering::SeqCst);
    }

    fn flag(&self) -> &AtomicU8 {
        const { assert!(offset_of!(kvm_run, immediate_exit) < PAGE_BYTES) };
        // SAFETY: the offset lies within the mapped page.
        let flag = unsafe { self.0.cast::<u8>().add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: the byte is mapped as long as `self` lives; this process accesses it through
        // this atomic only, the kernel reads it once per `KVM_RUN`.
        unsafe { AtomicU8::from_ptr(flag.as_ptr()) }
    }
}

impl Drop for ImmediateExit {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new`, and no reference into it outlives `self`.
        let _ = unsafe { libc::munmap(self.0.as_ptr(), PAGE_BYTES) };
    }
}
