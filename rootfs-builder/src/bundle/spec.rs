//! The configuration every bundle starts from, and what a caller may change in it.
//!
//! Called by `convert` and by whoever writes a `config.json` of their own.

use oci_spec::runtime::{Capability, LinuxCapabilities, Spec};

/// What `runc spec` writes on a host with cgroup v2, with our hostname.
const DEFAULT: &str = include_str!("default-config.json");

/// The capabilities of a container made from an image or a directory: those Docker and containerd
/// grant, without which package managers and most servers fail.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// What a caller says about the container, beyond the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The command and its arguments. With an image, in place of its `Cmd`, after its `Entrypoint`.
    pub args: Vec<String>,
    /// Variables, `NAME=VALUE`, in place of those of the same name.
    pub env: Vec<String>,
    /// The working directory, an absolute path.
    pub cwd: Option<String>,
    /// `USER[:GROUP]`, by name or number.
    pub user: Option<String>,
    /// The container's host name.
    pub hostname: Option<String>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Annotations, name and value.
    pub annotations: Vec<(String, String)>,
}

/// Returns the configuration that `runc spec` writes (with another host name): `sh` on a terminal,
/// a read-only root file system in `rootfs`, three capabilities.
///
/// # Panics
///
/// Never: the text is part of the program, and tested.
#[must_use]
pub fn default_spec() -> Spec {
    serde_json::from_str(DEFAULT).expect("the default configuration is tested to be one")
}

/// Returns [`default_spec`] as containers of images expect it: with the usual capabilities,
/// and with setuid programs that work.
pub(super) fn container_spec() -> Spec {
    let mut spec = default_spec();
    let granted = || {
        CAPABILITIES
            .into_iter()
            .collect::<std::collections::HashSet<_>>()
    };
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(granted()))
        .set_effective(Some(granted()))
        .set_permitted(Some(granted()))
        .set_inheritable(None)
        .set_ambient(None);
    if let Some(process) = spec.process_mut() {
        process.set_capabilities(Some(capabilities));
        process.set_no_new_privileges(Some(false));
    }
    spec
}
