//! A bundle: the directory with `config.json`, or another file that the caller names. Reads and
//! parses it; what the fields mean is the plan's business.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, Process, Spec};
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::{Value, json};

/// Name of the specification's file, unless the caller says otherwise.
pub(crate) const CONFIG: &str = "config.json";

/// Largest `config.json` that is read: containers with thousands of mounts stay below 1 MiB.
const CONFIG_MAX_BYTES: u64 = 16 << 20;

/// A bundle, parsed.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute path of the directory, symbolic links resolved.
    pub(crate) path: PathBuf,
    /// Path of the specification's file.
    pub(crate) file: PathBuf,
    /// The content of that file.
    pub(crate) spec: Spec,
    /// What in it is passed over, one line each.
    pub(crate) warnings: Vec<String>,
}

/// Why a bundle cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// The directory is not there.
    #[error("bundle {}", path.display())]
    Directory {
        /// As given.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no `config.json`.
    #[error("JSON specification file {} not found", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any honest one.
    #[error("{} exceeds {CONFIG_MAX_BYTES} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file is not JSON, or a field has the wrong type.
    #[error("{}: {field}{message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Field with a colon and a blank, or empty when the whole file is meant.
        field: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Bundle {
    /// Reads the specification of the bundle at `path`: its `config.json`, or another `file`, which
    /// is then looked for from the working directory, as by crun.
    ///
    /// # Errors
    /// [`BundleError`].
    pub(crate) fn load(path: &Path, file: &Path) -> Result<Self, BundleError> {
        let path = path
            .canonicalize()
            .map_err(|source| BundleError::Directory {
                path: path.to_owned(),
                source,
            })?;
        let file = if file == Path::new(CONFIG) {
            path.join(file)
        } else {
            std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
        };
        let (spec, warnings) = read_json(&file, "/process")?;
        Ok(Self {
            path,
            file,
            spec,
            warnings,
        })
    }

    /// A path of the spec: absolute, or relative to the bundle.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        self.path.join(path)
    }
}

/// Reads the `process.json` of `exec --process`, and what in it is passed over.
///
/// # Errors
/// [`BundleError`].
pub(crate) fn load_process(path: &Path) -> Result<(Process, Vec<String>), BundleError> {
    read_json(path, "")
}

/// Reads a JSON file that has a process at `process` (a JSON pointer).
fn read_json<T: DeserializeOwned>(
    path: &Path,
    process: &str,
) -> Result<(T, Vec<String>), BundleError> {
    let text = read_bounded(path)?;
    match serde_json::from_slice(&text) {
        Ok(value) => Ok((value, Vec::new())),
        Err(error) => read_again(path, &text, process, &error),
    }
}

/// Parses a text that did not parse once more, with what oci-spec is stricter about than runc put
/// right: see [`fill_in`], [`respell`] and [`drop_unknown_capabilities`].
fn read_again<T: DeserializeOwned>(
    path: &Path,
    text: &[u8],
    process: &str,
    error: &serde_json::Error,
) -> Result<(T, Vec<String>), BundleError> {
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else {
        return Err(name_field::<T>(path, text, error));
    };
    let mut warnings = Vec::new();
    let mut changed = fill_in(&mut value, process);
    if let Some(process) = value.pointer_mut(process) {
        changed |= respell(process);
        drop_unknown_capabilities(process, &mut warnings);
    }
    if !changed && warnings.is_empty() {
        return Err(name_field::<T>(path, text, error));
    }
    serde_path_to_error::deserialize(value)
        .map(|value| (value, warnings))
        .map_err(|error| parse_error(path, &error))
}

/// Gives fields that are missing, or `null`, the zero value that runc's decoder gives them, where
/// oci-spec wants them to be there and runc does not. Whether zero will do is the plan's to say.
/// Returns whether there were any.
fn fill_in(value: &mut Value, process: &str) -> bool {
    let mut changed = false;
    let mut fill = |object: &mut Value, name: &str, zero: Value| {
        if let Value::Object(fields) = object
            && fields.get(name).is_none_or(Value::is_null)
        {
            fields.insert(name.to_owned(), zero);
            changed = true;
        }
    };
    if let Some(process) = value.pointer_mut(process) {
        fill(process, "user", json!({}));
        fill(process, "cwd", json!(""));
    }
    for rule in list_mut(value, "/linux/seccomp/syscalls") {
        fill(rule, "names", json!([]));
        for condition in list_mut(rule, "/args") {
            fill(condition, "index", json!(0));
            fill(condition, "value", json!(0));
        }
    }
    changed
}

/// The members of the list at `pointer`: none if there is no such list.
fn list_mut<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    let list = value.pointer_mut(pointer).and_then(Value::as_array_mut);
    list.into_iter().flatten()
}

/// One flag of the scheduler is spelt by oci-spec as nobody else does. Returns whether it is there.
fn respell(process: &mut Value) -> bool {
    let mut changed = false;
    for flag in list_mut(process, "/scheduler/flags").filter(|flag| *flag == SPEC_DL_OVERRUN) {
        *flag = CRATE_DL_OVERRUN.into();
        changed = true;
    }
    changed
}

/// Takes out the capabilities that this version has never heard of: the runtime-spec wants those
/// warned of and passed over.
fn drop_unknown_capabilities(process: &mut Value, warnings: &mut Vec<String>) {
    let Some(Value::Object(sets)) = process.get_mut("capabilities") else {
        return;
    };
    for set in sets.values_mut().filter_map(Value::as_array_mut) {
        set.retain(|name| {
            let known = !name.is_string() || Capability::deserialize(name).is_ok();
            if !known {
                warnings.push(format!("process.capabilities: {name} is unknown, ignored"));
            }
            known
        });
    }
    warnings.sort_unstable();
    warnings.dedup();
}

/// The runtime-spec's name of a flag of `process.scheduler.flags`, and oci-spec's.
const SPEC_DL_OVERRUN: &str = "SCHED_FLAG_DL_OVERRUN";
const CRATE_DL_OVERRUN: &str = "SCHED_FLAG_D_L_OVERRUN";

fn read_bounded(path: &Path) -> Result<Vec<u8>, BundleError> {
    use std::io::Read as _;

    let read = |source: std::io::Error| {
        let path = path.to_owned();
        if source.kind() == std::io::ErrorKind::NotFound {
            BundleError::NotFound { path }
        } else {
            BundleError::Read { path, source }
        }
    };
    let file = std::fs::File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    let mut text = Vec::with_capacity(usize::try_from(size.min(CONFIG_MAX_BYTES)).unwrap_or(0) + 1);
    file.take(CONFIG_MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(read)?;
    if text.len() as u64 > CONFIG_MAX_BYTES {
        return Err(BundleError::TooLong {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

/// Parses `text` keeping track of the field: too slow for the good case.
fn name_field<T: DeserializeOwned>(
    path: &Path,
    text: &[u8],
    error: &serde_json::Error,
) -> BundleError {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(error) => parse_error(path, &error),
        // The value is fine, so what follows it is not.
        Ok(_) => BundleError::Parse {
            path: path.to_owned(),
            field: String::new(),
            message: error.to_string(),
        },
    }
}

fn parse_error(path: &Path, error: &serde_path_to_error::Error<serde_json::Error>) -> BundleError {
    let field = error.path().to_string();
    let mut message = error.inner().to_string();
    let is_limit = field.ends_with("].type") && field.contains("rlimits[");
    if let (true, Some(name)) = (is_limit, message.split('`').nth(1)) {
        // runc's words, without the list of all names.
        message = format!("wrong rlimit value: {name}");
    }
    BundleError::Parse {
        path: path.to_owned(),
        field: if names_a_field(&field) {
            field + ": "
        } else {
            String::new()
        },
        message,
    }
}

/// `.` stands for the whole value and `?` for a field that could not be told.
fn names_a_field(path: &str) -> bool {
    !matches!(path, "." | "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(config: &str) -> Result<Bundle, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        let name = format!("{}/config.json: ", directory.path().display());
        Bundle::load(directory.path(), Path::new(CONFIG))
            .map_err(|error| error.to_string().replace(&name, ""))
    }

    #[test]
    fn errors_name_the_field() {
        for (config, message) in [
            (
                r#"{"process":{"user":{"uid":"x"},"cwd":"/"}}"#,
                "process.user.uid: invalid type: string \"x\", expected u32 at line 1 column 29",
            ),
            (
                r#"{"process":{"user":{},"cwd":"/","rlimits":[{}]}}"#,
                "process.rlimits[0]: missing field `type` at line 1 column 45",
            ),
            (
                r#"{"process":{"user":{},"cwd":"/","rlimits":[{"type":"RLIMIT_X"}]}}"#,
                "process.rlimits[0].type: wrong rlimit value: RLIMIT_X",
            ),
            ("{", "EOF while parsing an object at line 1 column 1"),
            ("{} x", "trailing characters at line 1 column 4"),
        ] {
            assert_eq!(load(config).unwrap_err(), message);
        }
    }

    #[test]
    fn missing_fields_are_zero() {
        for config in [
            r#"{"process":{}}"#,
            r#"{"process":{"user":null,"cwd":null}}"#,
        ] {
            let bundle = load(config).unwrap();
            assert!(bundle.warnings.is_empty());
            let process = bundle.spec.process().as_ref().unwrap();
            assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
            assert_eq!(process.cwd(), Path::new(""));
            assert!(process.args().is_none() && process.terminal().is_none());
        }
        let seccomp = r#"{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":
            [{"action":"SCMP_ACT_LOG","args":[{"op":"SCMP_CMP_EQ"}]}]}}}"#;
        let bundle = load(seccomp).unwrap();
        let seccomp = bundle.spec.linux().as_ref().unwrap().seccomp().as_ref();
        let rule = &seccomp.unwrap().syscalls().as_ref().unwrap()[0];
        assert!(rule.names().is_empty());
        let condition = &rule.args().as_ref().unwrap()[0];
        assert_eq!((condition.index(), condition.value()), (0, 0));
    }

    #[test]
    fn a_process_alone_may_leave_out_as_much() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("process.json");
        std::fs::write(&path, r#"{"args":["true"],"cwd":"/"}"#).unwrap();
        let (process, warnings) = load_process(&path).unwrap();
        assert!(warnings.is_empty());
        assert_eq!(process.user().uid(), 0);
        std::fs::write(&path, r#"{"args":1,"cwd":"/"}"#).unwrap();
        let error = load_process(&path).unwrap_err().to_string();
        assert!(
            error.contains("process.json: args: invalid type"),
            "{error}"
        );
    }

    #[test]
    fn unknown_capabilities_are_passed_over_with_a_warning() {
        let config = |more: &str| {
            format!(
                r#"{{"process":{{"user":{{}},"cwd":"/","capabilities":{{"bounding":["CAP_KILL","CAP_X"],"effective":["CAP_X"]}}{more}}}}}"#
            )
        };
        let bundle = load(&config("")).unwrap();
        assert_eq!(
            bundle.warnings,
            ["process.capabilities: \"CAP_X\" is unknown, ignored"]
        );
        let sets = bundle.spec.process().as_ref().unwrap().capabilities();
        let bounding = sets.as_ref().unwrap().bounding().as_ref().unwrap();
        assert_eq!(bounding.len(), 1);
        let error = load(&config(r#","args":1"#)).unwrap_err();
        assert!(error.starts_with("process.args: invalid type"), "{error}");
    }

    #[test]
    fn every_flag_of_the_scheduler_is_read() {
        let config = |flag: &str| {
            format!(
                r#"{{"process":{{"user":{{}},"cwd":"/","scheduler":{{"policy":"SCHED_DEADLINE","flags":["{flag}"]}}}}}}"#
            )
        };
        let bundle = load(&config("SCHED_FLAG_DL_OVERRUN")).unwrap();
        assert!(bundle.warnings.is_empty());
        let process = bundle.spec.process().as_ref().unwrap();
        let flags = process.scheduler().as_ref().unwrap().flags();
        assert_eq!(flags.as_ref().unwrap().len(), 1);
        let error = load(&config("SCHED_FLAG_X")).unwrap_err();
        assert!(
            error.starts_with("process.scheduler.flags[0]: unknown variant"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = Bundle::load(directory.path(), Path::new(CONFIG))
            .unwrap_err()
            .to_string();
        let path = directory.path().join("config.json");
        assert_eq!(
            error,
            format!("JSON specification file {} not found", path.display())
        );
    }
}
