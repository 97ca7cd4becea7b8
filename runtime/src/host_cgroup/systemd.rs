//! The systemd driver: a sandbox's cgroup as a transient scope, asked for on the system bus. Only
//! what systemd has to know is said here, so that it does not undo the limits; the files of the
//! cgroup are written all the same.
//!
//! Sources: `org.freedesktop.systemd1(5)`, `systemd.resource-control(5)`; runc for which properties.

use std::time::Duration;

use rustbus::{
    MessageBuilder, MessageType, RpcConn,
    connection::{Timeout, get_system_bus_path},
    message_builder::MarshalledMessage,
    standard_messages, wire,
};

use super::files::cpu_weight;
use crate::plan::{HostCgroup, HostLimits, UnitProperty, UnitValue};

/// Where a systemd that has booted the machine says so (`sd_booted(3)`).
const BOOTED: &str = "/run/systemd/system";

/// How long systemd may take for one job.
const TIMEOUT: Duration = Duration::from_secs(30);

const DESTINATION: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Period of a CPU quota when the spec gives none, in microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// Quotas are whole hundredths of a second of CPU time in each second.
const QUOTA_STEP_US: u64 = 10_000;

/// Why systemd did not do its part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SystemdError {
    /// The words are runc's.
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NotRunning,
    /// The bus.
    #[error("cannot {action}")]
    Bus {
        /// What was being done.
        action: &'static str,
        /// Why not.
        #[source]
        source: rustbus::connection::Error,
    },
    /// A message could not be written or read.
    #[error("cannot {action}: {problem}")]
    Message {
        /// What was being done.
        action: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Systemd said no.
    #[error("cannot {action} unit {unit}: {message}")]
    Refused {
        /// What was being done.
        action: &'static str,
        /// The unit.
        unit: String,
        /// The error's name on the bus.
        name: String,
        /// Systemd's words.
        message: String,
    },
    /// The job did not get done.
    #[error("cannot {action} unit {unit}: systemd's job ended with {result:?}")]
    Job {
        /// What was being done.
        action: &'static str,
        /// The unit.
        unit: String,
        /// Systemd's word.
        result: String,
    },
}

rustbus::dbus_variant_sig!(Value, Flag => bool; Text => String; Texts => Vec<String>; I32 => i32; U32 => u32;
    I64 => i64; Number => u64; Pids => Vec<u32>; Bits => Vec<u8>);

type Properties = Vec<(String, Value)>;

/// Checks that there is a systemd to ask.
///
/// # Errors
/// [`SystemdError::NotRunning`].
pub(crate) fn check_running() -> Result<(), SystemdError> {
    match std::fs::symlink_metadata(BOOTED) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        _ => Err(SystemdError::NotRunning),
    }
}

/// Starts the scope `unit` in `slice` with this process in it.
///
/// # Errors
/// [`SystemdError`].
pub(super) fn start(
    slice: &str,
    unit: &str,
    wanted: &HostCgroup,
    is_v1: bool,
) -> Result<(), SystemdError> {
    let mut properties: Properties = vec![
        (
            "Description".to_owned(),
            Value::Text(format!("lazaret sandbox {unit}")),
        ),
        ("Slice".to_owned(), Value::Text(slice.to_owned())),
        ("PIDs".to_owned(), Value::Pids(vec![std::process::id()])),
    ];
    let flags = [
        ("Delegate", true),
        ("MemoryAccounting", true),
        ("CPUAccounting", true),
        (
            if is_v1 {
                "BlockIOAccounting"
            } else {
                "IOAccounting"
            },
            true,
        ),
        ("TasksAccounting", true),
        ("DefaultDependencies", false),
    ];
    properties.extend(flags.map(|(name, value)| (name.to_owned(), Value::Flag(value))));
    properties.extend(of(&wanted.limits, is_v1));
    // The last one of a name holds.
    properties.extend(wanted.properties.iter().map(property));
    let mut bus = Bus::connect()?;
    match bus.start(unit, &properties) {
        Err(SystemdError::Refused { name, .. }) if name == UNIT_EXISTS => {
            // One of this name that has failed is in the way until it is forgotten.
            let _ = bus.call("reset", unit, unit_call("ResetFailedUnit", unit)?);
            bus.start(unit, &properties)
        }
        result => result,
    }
}

/// A property that the bundle gives, for the bus.
fn property(given: &UnitProperty) -> (String, Value) {
    let value = match given.value.clone() {
        UnitValue::Flag(value) => Value::Flag(value),
        UnitValue::Text(value) => Value::Text(value),
        UnitValue::Texts(value) => Value::Texts(value),
        UnitValue::I32(value) => Value::I32(value),
        UnitValue::U32(value) => Value::U32(value),
        UnitValue::I64(value) => Value::I64(value),
        UnitValue::U64(value) => Value::Number(value),
    };
    (given.name.clone(), value)
}

/// Tells systemd the limit on CPU time.
///
/// # Errors
/// [`SystemdError`].
pub(super) fn limit_cpu(unit: &str, limits: &HostLimits) -> Result<(), SystemdError> {
    set(unit, &cpu_time(limits))
}

/// Tells systemd limits that change.
///
/// # Errors
/// [`SystemdError`].
pub(super) fn limit(unit: &str, limits: &HostLimits, is_v1: bool) -> Result<(), SystemdError> {
    let mut properties = of(limits, is_v1);
    properties.extend(cpu_time(limits));
    set(unit, &properties)
}

fn set(unit: &str, properties: &Properties) -> Result<(), SystemdError> {
    if properties.is_empty() {
        return Ok(());
    }
    const ACTION: &str = "limit";
    let mut call = method("SetUnitProperties");
    call.body
        .push_param3(unit, true, properties)
        .map_err(message_error(ACTION))?;
    Bus::connect()?.call(ACTION, unit, call)?;
    Ok(())
}

/// Stops the scope `unit`; one that is gone is fine.
///
/// # Errors
/// [`SystemdError`].
pub(super) fn stop(unit: &str) -> Result<(), SystemdError> {
    const ACTION: &str = "stop";
    let mut bus = Bus::connect()?;
    let mut call = method("StopUnit");
    call.body
        .push_param2(unit, "replace")
        .map_err(message_error(ACTION))?;
    match bus.job(ACTION, unit, call) {
        // Units without processes stop by themselves.
        Err(SystemdError::Refused { name, .. }) if name == NO_SUCH_UNIT => Ok(()),
        result => {
            let _ = bus.call("reset", unit, unit_call("ResetFailedUnit", unit)?);
            result
        }
    }
}

/// Properties of all limits but those on CPU time.
fn of(limits: &HostLimits, is_v1: bool) -> Properties {
    // -1 is systemd's infinity, too.
    let unsigned = |value: i64| u64::from_ne_bytes(value.to_ne_bytes());
    let weight = limits.cpu_shares.map(cpu_weight);
    let numbers = if is_v1 {
        let io = limits.io_weight.map(u64::from);
        vec![
            ("MemoryLimit", limits.memory_bytes.map(unsigned)),
            ("CPUShares", limits.cpu_shares),
            ("BlockIOWeight", io),
        ]
    } else {
        vec![
            ("MemoryMax", limits.memory_bytes.map(unsigned)),
            ("MemoryLow", limits.reservation_bytes.map(unsigned)),
            ("MemorySwapMax", limits.swap_bytes.map(unsigned)),
            ("CPUWeight", weight),
        ]
    };
    let mut properties: Properties = numbers
        .into_iter()
        .chain([("TasksMax", limits.pids.map(unsigned))])
        .filter_map(|(name, value)| Some((name.to_owned(), Value::Number(value?))))
        .collect();
    for (name, list) in [
        ("AllowedCPUs", &limits.cpus),
        ("AllowedMemoryNodes", &limits.mems),
    ] {
        let bits = bits(list);
        if !bits.is_empty() {
            properties.push((name.to_owned(), Value::Bits(bits)));
        }
    }
    properties
}

fn cpu_time(limits: &HostLimits) -> Properties {
    let mut properties = Properties::new();
    if let Some(period) = limits.cpu_period_us {
        properties.push(("CPUQuotaPeriodUSec".to_owned(), Value::Number(period)));
    }
    if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
        let quota = limits.cpu_quota_us.and_then(|us| u64::try_from(us).ok());
        let period = limits.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US);
        let per_second = quota.map_or(u64::MAX, |quota| quota_per_second_us(quota, period));
        properties.push(("CPUQuotaPerSecUSec".to_owned(), Value::Number(per_second)));
    }
    properties
}

/// CPU time in each second, rounded up to what systemd can express, so that it is never less than
/// what the cgroup's own file says.
fn quota_per_second_us(quota_us: u64, period_us: u64) -> u64 {
    let exact = u128::from(quota_us) * 1_000_000 / u128::from(period_us.max(1));
    let steps = exact.div_ceil(QUOTA_STEP_US.into());
    u64::try_from(steps * u128::from(QUOTA_STEP_US)).unwrap_or(u64::MAX)
}

/// A list such as `0-3,8` as a mask, the lowest first. The plan has checked the list of CPUs; of
/// another, what cannot be read is left out, for the file of the cgroup is going to be refused.
fn bits(list: &str) -> Vec<u8> {
    const HIGHEST: usize = 8_191;
    let mut bits = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse()) else {
            continue;
        };
        for number in first..=HIGHEST.min(last) {
            let (byte, bit) = (number / 8, number % 8);
            if bits.len() <= byte {
                bits.resize(byte + 1, 0);
            }
            bits[byte] |= 1 << bit;
        }
    }
    bits
}

fn method(name: &str) -> MarshalledMessage {
    MessageBuilder::new()
        .call(name)
        .with_interface(INTERFACE)
        .on(OBJECT)
        .at(DESTINATION)
        .build()
}

fn unit_call(name: &str, unit: &str) -> Result<MarshalledMessage, SystemdError> {
    let mut call = method(name);
    call.body
        .push_param(unit)
        .map_err(message_error("name a unit"))?;
    Ok(call)
}

fn message_error<E: std::fmt::Debug>(action: &'static str) -> impl FnOnce(E) -> SystemdError {
    move |error| SystemdError::Message {
        action,
        problem: format!("{error:?}"),
    }
}

fn bus_error(action: &'static str) -> impl FnOnce(rustbus::connection::Error) -> SystemdError {
    move |source| SystemdError::Bus { action, source }
}

/// A connection to the system bus.
struct Bus(RpcConn);

impl Bus {
    fn connect() -> Result<Self, SystemdError> {
        const ACTION: &str = "connect to the system bus";
        let path = get_system_bus_path().map_err(bus_error(ACTION))?;
        let connection = RpcConn::connect_to_path(path, Timeout::Duration(TIMEOUT));
        Ok(Self(connection.map_err(bus_error(ACTION))?))
    }

    fn send(
        &mut self,
        action: &'static str,
        call: &mut MarshalledMessage,
    ) -> Result<u32, SystemdError> {
        let sent = self.0.send_message(call).map_err(bus_error(action))?;
        let sent = sent.write_all();
        sent.map_err(|(context, error)| {
            context.force_finish();
            bus_error(action)(error)
        })
    }

    /// Makes a call and returns the reply.
    fn call(
        &mut self,
        action: &'static str,
        unit: &str,
        mut call: MarshalledMessage,
    ) -> Result<MarshalledMessage, SystemdError> {
        let serial = self.send(action, &mut call)?;
        let timeout = Timeout::Duration(TIMEOUT);
        let reply = self.0.wait_response(serial, timeout);
        let reply = reply.map_err(bus_error(action))?;
        if reply.typ != MessageType::Error {
            return Ok(reply);
        }
        let message = reply.body.parser().get::<String>().unwrap_or_default();
        Err(SystemdError::Refused {
            action,
            unit: unit.to_owned(),
            name: reply.dynheader.error_name.unwrap_or_default(),
            message,
        })
    }

    /// Makes a call that starts a job, and waits until the job is done.
    fn job(
        &mut self,
        action: &'static str,
        unit: &str,
        call: MarshalledMessage,
    ) -> Result<(), SystemdError> {
        let rule = format!("type='signal',interface='{INTERFACE}',member='JobRemoved'");
        self.call(action, unit, standard_messages::add_match(&rule))?;
        let reply = self.call(action, unit, call)?;
        let job: wire::ObjectPath<String> = reply
            .body
            .parser()
            .get()
            .map_err(message_error("read the name of a job"))?;
        loop {
            let signal = self.0.wait_signal(Timeout::Duration(TIMEOUT));
            let signal = signal.map_err(bus_error("wait for systemd's job"))?;
            if signal.dynheader.member.as_deref() != Some("JobRemoved") {
                continue;
            }
            // Number, job, unit, result.
            let ended = signal.body.parser();
            let mut ended = ended;
            let (_, path, _, result) = ended
                .get4::<u32, wire::ObjectPath<String>, &str, &str>()
                .map_err(message_error("read the end of a job"))?;
            if path != job {
                continue;
            }
            return match result {
                "done" => Ok(()),
                result => Err(SystemdError::Job {
                    action,
                    unit: unit.to_owned(),
                    result: result.to_owned(),
                }),
            };
        }
    }

    fn start(&mut self, unit: &str, properties: &Properties) -> Result<(), SystemdError> {
        const ACTION: &str = "start";
        let mut call = method("StartTransientUnit");
        let no_units: Vec<(String, Properties)> = Vec::new();
        call.body
            .push_param4(unit, "replace", properties, &no_units)
            .map_err(message_error(ACTION))?;
        self.job(ACTION, unit, call)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_is_a_mask_with_the_lowest_first() {
        for (list, mask) in [
            ("", &[][..]),
            ("0", &[1]),
            ("0-3,8", &[0b1111, 1]),
            ("15", &[0, 0x80]),
        ] {
            assert_eq!(bits(list), mask, "{list}");
        }
    }

    #[test]
    fn a_quota_is_rounded_up_to_a_hundredth_of_a_cpu() {
        assert_eq!(quota_per_second_us(50_000, 100_000), 500_000);
        assert_eq!(quota_per_second_us(1_000, 100_000), 10_000);
        assert_eq!(quota_per_second_us(33_333, 100_000), 340_000);
    }

    #[test]
    fn each_version_of_cgroups_has_its_properties() {
        let limits = HostLimits {
            memory_bytes: Some(1 << 30),
            reservation_bytes: Some(1 << 20),
            swap_bytes: Some(-1),
            cpu_shares: Some(512),
            cpus: "0".into(),
            pids: Some(9),
            io_weight: Some(10),
            ..HostLimits::default()
        };
        let names = |is_v1| {
            of(&limits, is_v1)
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(true),
            [
                "MemoryLimit",
                "CPUShares",
                "BlockIOWeight",
                "TasksMax",
                "AllowedCPUs"
            ]
        );
        assert_eq!(
            names(false),
            [
                "MemoryMax",
                "MemoryLow",
                "MemorySwapMax",
                "CPUWeight",
                "TasksMax",
                "AllowedCPUs"
            ]
        );
    }

    proptest! {
        #[test]
        fn systemd_never_allows_less_than_the_quota(quota in 1_u64..1 << 40, period in 1_u64..1 << 30) {
            let us = u128::from(quota_per_second_us(quota, period));
            prop_assert!(us * u128::from(period) + u128::from(period) > u128::from(quota) * 1_000_000
                || us == u128::from(u64::MAX));
        }

        #[test]
        fn no_list_panics(list in "[0-9,\\- ]{0,12}") {
            prop_assert!(bits(&list).len() <= 1_024);
        }
    }
}
