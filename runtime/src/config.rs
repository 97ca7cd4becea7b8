//! `/etc/lazaret/config.toml`: where the VMM, the kernel and the initramfs are, and what a VM gets
//! when nobody asks for something else. Read by the verbs that start a VM and by `check`;
//! described key by key in docs/configuration.md.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// The file that is read when neither `--config` nor `LAZARET_CONFIG` names one.
pub const DEFAULT_PATH: &str = "/etc/lazaret/config.toml";

/// Guest memory that a VM can have, in MiB: from where the guest's kernel has room to work to what
/// the VMM accepts.
pub const MEMORY_MIB: std::ops::RangeInclusive<u64> = 64..=1 << 20;

/// Virtual CPUs that a VM can have: what the VMM accepts.
pub const VCPUS: std::ops::RangeInclusive<u64> = 1..=64;

/// Deadlines that can be set for the boot, in milliseconds: one that no guest meets is a mistake,
/// and so is one of more than ten minutes.
const BOOT_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=600_000;

/// Bytes of extra kernel parameters: the kernel's command line is 2,048 bytes in all.
const KERNEL_PARAMETERS_MAX_BYTES: usize = 1_024;

/// The configuration, complete: missing keys have their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The `lazaret-vmm` binary.
    pub vmm: PathBuf,
    /// Guest kernel, an uncompressed ELF image.
    pub kernel: PathBuf,
    /// Guest initramfs with the agent.
    pub initramfs: PathBuf,
    /// Guest memory of a container without a memory limit, in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs of a container without a CPU quota.
    pub vcpus: u8,
    /// Whether guest memory comes from the host's pool of 2 MiB pages.
    pub huge_pages: bool,
    /// Parameters appended to the guest kernel's command line.
    pub kernel_parameters: String,
    /// File that gets the guest kernel's console output, if any.
    pub console: Option<PathBuf>,
    /// How long a guest may take until its agent answers, in milliseconds.
    pub boot_timeout_ms: u64,
    /// `io.lazaret.` annotations that a bundle may use, without that prefix.
    pub annotations: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vmm: "/usr/libexec/lazaret/lazaret-vmm".into(),
            kernel: "/usr/share/lazaret/vmlinux".into(),
            initramfs: "/usr/share/lazaret/initramfs.cpio".into(),
            memory_mib: 256,
            vcpus: 1,
            huge_pages: false,
            kernel_parameters: String::new(),
            console: None,
            boot_timeout_ms: 30_000,
            annotations: vec!["vm.memory_mib".to_owned(), "vm.vcpus".to_owned()],
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists but cannot be read, or was named and does not exist.
    #[error("cannot read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("configuration {}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The parser's words, one line.
        message: String,
    },
    /// There is no such key.
    #[error("configuration {}: unknown key `{key}`", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The value does not fit the key.
    #[error("configuration {}: `{key}` must be {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would be right.
        expected: String,
    },
}

impl Config {
    /// Reads `path`, or [`DEFAULT_PATH`] if there is one.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file and the key.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (file, named) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(file, &text),
            Err(error) if !named && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read {
                path: file.to_owned(),
                source,
            }),
        }
    }

    /// Reads the text of a configuration file; relative paths are relative to its folder.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let table: Table = text
            .parse()
            .map_err(|error| syntax_error(path, text, &error))?;
        let mut config = Self::default();
        for (key, value) in &table {
            config.set(&Key { path, key, value })?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &Key<'_>) -> Result<(), ConfigError> {
        match key.key {
            "vmm" => self.vmm = key.file()?,
            "kernel" => self.kernel = key.file()?,
            "initramfs" => self.initramfs = key.file()?,
            "memory_mib" => self.memory_mib = key.number(MEMORY_MIB)?,
            "vcpus" => {
                self.vcpus = u8::try_from(key.number(VCPUS)?).expect("VCPUS ends below 256");
            }
            "huge_pages" => self.huge_pages = key.boolean()?,
            "kernel_parameters" => self.kernel_parameters = key.kernel_parameters()?,
            "console" => self.console = Some(key.file()?),
            "boot_timeout_ms" => self.boot_timeout_ms = key.number(BOOT_TIMEOUT_MS)?,
            "annotations" => self.annotations = key.annotations()?,
            _ => {
                return Err(ConfigError::UnknownKey {
                    path: key.path.to_owned(),
                    key: key.key.to_owned(),
                });
            }
        }
        Ok(())
    }
}

fn syntax_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or(text);
    ConfigError::Syntax {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        message: error.message().lines().collect::<Vec<_>>().join(", "),
    }
}

/// One key of the file with its value.
struct Key<'a> {
    path: &'a Path,
    key: &'a str,
    value: &'a Value,
}

impl Key<'_> {
    fn must_be(&self, expected: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            path: self.path.to_owned(),
            key: self.key.to_owned(),
            expected: expected.into(),
        }
    }

    fn file(&self) -> Result<PathBuf, ConfigError> {
        match self.value.as_str() {
            Some(file) if !file.is_empty() => Ok(self
                .path
                .parent()
                .unwrap_or(Path::new(""))
                .join(Path::new(file))),
            _ => Err(self.must_be("a path")),
        }
    }

    fn number(&self, range: std::ops::RangeInclusive<u64>) -> Result<u64, ConfigError> {
        self.value
            .as_integer()
            .and_then(|number| u64::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                self.must_be(format!(
                    "a number from {} to {}",
                    range.start(),
                    range.end()
                ))
            })
    }

    fn boolean(&self) -> Result<bool, ConfigError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.must_be("true or false"))
    }

    fn kernel_parameters(&self) -> Result<String, ConfigError> {
        let printable = |text: &&str| text.bytes().all(|byte| (b' '..0x7f).contains(&byte));
        self.value
            .as_str()
            .filter(|text| text.len() <= KERNEL_PARAMETERS_MAX_BYTES)
            .filter(printable)
            .map(str::to_owned)
            .ok_or_else(|| {
                self.must_be(format!(
                    "a string of at most {KERNEL_PARAMETERS_MAX_BYTES} printable ASCII characters"
                ))
            })
    }

    fn annotations(&self) -> Result<Vec<String>, ConfigError> {
        let known = crate::plan::ANNOTATIONS;
        let expected = || self.must_be(format!("a list of some of: {}", known.join(", ")));
        let list = self.value.as_array().ok_or_else(expected)?;
        list.iter()
            .map(|name| match name.as_str() {
                Some(name) if known.contains(&name) => Ok(name.to_owned()),
                _ => Err(expected()),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
