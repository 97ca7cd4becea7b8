//! From an image's configuration to a container's (image-spec, conversion.md).
//!
//! Called by the parent module. `Config.Volumes` has no counterpart here: the root file system is the
//! bundle's own, so what is written to a volume's directory stays in the bundle.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{Process, Root, Spec, UserBuilder};

use super::spec::{Overrides, container_spec};
use super::user::{self, UserError};
use crate::Observer;
use crate::unpack::Tree;

/// What `PATH` is if nobody says.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_TERMINAL: &str = "TERM=xterm";
/// Labels that container runtimes take for orders, ours, crun's and runc's. An image's author does not
/// give orders to the host.
const ORDERS: [&str; 3] = ["io.lazaret.", "run.oci.", "org.systemd.property."];

/// Why no configuration can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Neither the image nor the caller names a command.
    #[error("no command: the image names none, so give one after `--`")]
    NoCommand,
    /// The working directory is relative.
    #[error("working directory {0:?} is not an absolute path")]
    RelativeCwd(String),
    /// A variable has no name, or a zero byte.
    #[error("environment variable {0:?} is not of the form NAME=VALUE")]
    Variable(String),
    /// An argument has a zero byte, which no process can be given.
    #[error("argument {0:?} has a zero byte in it")]
    Argument(String),
    /// The user cannot be found.
    #[error(transparent)]
    User(#[from] UserError),
    /// The parts do not make a configuration.
    #[error("configuration")]
    Spec(#[from] OciSpecError),
}

/// What is to be run, and how.
struct Request<'r> {
    args: Vec<String>,
    env: Vec<String>,
    cwd: &'r str,
    user: &'r str,
    annotations: HashMap<String, String>,
    root: PathBuf,
}

/// Makes the configuration for an image that was unpacked to `tree`, in the bundle's `rootfs`.
pub(super) fn from_image(
    configuration: &ImageConfiguration,
    overrides: &Overrides,
    tree: &Tree,
    observer: &dyn Observer,
) -> Result<Spec, ConvertError> {
    let image = configuration.config().as_ref();
    let list = |of: Option<&Option<Vec<String>>>| of.cloned().flatten().unwrap_or_default();
    let text = |of: Option<&'_ Option<String>>| of.cloned().flatten().unwrap_or_default();
    let mut args = list(image.map(|image| image.entrypoint()));
    if overrides.args.is_empty() {
        args.extend(list(image.map(|image| image.cmd())));
    } else {
        args.extend(overrides.args.iter().cloned());
    }
    let cwd = text(image.map(|image| image.working_dir()));
    let user = text(image.map(|image| image.user()));
    let request = Request {
        args,
        env: list(image.map(|image| image.env())),
        cwd: if cwd.is_empty() { "/" } else { &cwd },
        user: &user,
        annotations: annotations(configuration, observer),
        root: PathBuf::from(super::ROOTFS),
    };
    convert(request, overrides, tree)
}

/// Makes the configuration for the directory at `path`, which is opened as `tree`.
pub(super) fn from_directory(
    path: &Path,
    overrides: &Overrides,
    tree: &Tree,
) -> Result<Spec, ConvertError> {
    let request = Request {
        args: overrides.args.clone(),
        env: Vec::new(),
        cwd: "/",
        user: "",
        annotations: HashMap::new(),
        root: path.to_owned(),
    };
    convert(request, overrides, tree)
}

fn convert(request: Request<'_>, overrides: &Overrides, tree: &Tree) -> Result<Spec, ConvertError> {
    let mut spec = container_spec();
    let mut process = spec.process().clone().unwrap_or_default();
    describe_process(&mut process, &request, overrides, tree)?;
    spec.set_process(Some(process));
    let mut root = Root::default();
    root.set_path(request.root);
    root.set_readonly(Some(overrides.read_only));
    spec.set_root(Some(root));
    if let Some(hostname) = &overrides.hostname {
        spec.set_hostname(Some(hostname.clone()));
    }
    let mut annotations = request.annotations;
    annotations.extend(overrides.annotations.iter().cloned());
    spec.set_annotations(Some(annotations).filter(|annotations| !annotations.is_empty()));
    Ok(spec)
}

fn describe_process(
    process: &mut Process,
    request: &Request<'_>,
    overrides: &Overrides,
    tree: &Tree,
) -> Result<(), ConvertError> {
    if request.args.first().is_none_or(String::is_empty) {
        return Err(ConvertError::NoCommand);
    }
    if let Some(argument) = request.args.iter().find(|argument| argument.contains('\0')) {
        return Err(ConvertError::Argument(argument.clone()));
    }
    let cwd = overrides.cwd.as_deref().unwrap_or(request.cwd);
    if !cwd.starts_with('/') {
        return Err(ConvertError::RelativeCwd(cwd.to_owned()));
    }
    let user = user::resolve(tree, overrides.user.as_deref().unwrap_or(request.user))?;
    let mut builder = UserBuilder::default().uid(user.uid).gid(user.gid);
    if !user.additional_gids.is_empty() {
        builder = builder.additional_gids(user.additional_gids);
    }
    process.set_user(builder.build()?);
    process.set_args(Some(request.args.clone()));
    process.set_env(Some(environment(&request.env, overrides)?));
    process.set_cwd(PathBuf::from(cwd));
    process.set_terminal(Some(overrides.terminal));
    Ok(())
}

/// The image's variables in their order, then the caller's new ones, then what is missing.
fn environment(image: &[String], overrides: &Overrides) -> Result<Vec<String>, ConvertError> {
    let mut variables: Vec<String> = Vec::with_capacity(image.len() + overrides.env.len() + 2);
    for variable in image.iter().chain(&overrides.env) {
        let name = name_of(variable).filter(|name| !name.is_empty() && !variable.contains('\0'));
        let name = name.ok_or_else(|| ConvertError::Variable(variable.clone()))?;
        match variables
            .iter_mut()
            .find(|other| name_of(other) == Some(name))
        {
            Some(other) => other.clone_from(variable),
            None => variables.push(variable.clone()),
        }
    }
    let terminal = Some(DEFAULT_TERMINAL).filter(|_| overrides.terminal);
    for default in [Some(DEFAULT_PATH), terminal].into_iter().flatten() {
        if !variables
            .iter()
            .any(|variable| name_of(variable) == name_of(default))
        {
            variables.push(default.to_owned());
        }
    }
    Ok(variables)
}

fn name_of(variable: &str) -> Option<&str> {
    variable.split_once('=').map(|(name, _)| name)
}

/// The annotations that stand for the image's own facts, and its labels, which come first.
fn annotations(
    configuration: &ImageConfiguration,
    observer: &dyn Observer,
) -> HashMap<String, String> {
    let image = configuration.config().as_ref();
    let ports = image
        .and_then(|image| image.exposed_ports().clone())
        .map(|ports| {
            // Docker keeps them in a map, so their order means nothing; ours should not change.
            ports
                .into_iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join(",")
        });
    let facts = [
        ("os", Some(configuration.os().to_string())),
        (
            "architecture",
            Some(configuration.architecture().to_string()),
        ),
        ("variant", configuration.variant().clone()),
        ("os.version", configuration.os_version().clone()),
        (
            "os.features",
            configuration
                .os_features()
                .as_ref()
                .map(|all| all.join(",")),
        ),
        ("author", configuration.author().clone()),
        ("created", configuration.created().clone()),
        (
            "stopSignal",
            image.and_then(|image| image.stop_signal().clone()),
        ),
        ("exposedPorts", ports),
    ];
    let mut annotations: HashMap<String, String> = facts
        .into_iter()
        .filter_map(|(name, value)| {
            let value = value.filter(|value| !value.is_empty())?;
            Some((format!("org.opencontainers.image.{name}"), value))
        })
        .collect();
    let labels = image
        .and_then(|image| image.labels().clone())
        .unwrap_or_default();
    for (name, value) in labels {
        if ORDERS.iter().any(|prefix| name.starts_with(prefix)) {
            let text = format!("label {name:?} of the image would direct the runtime: left out");
            observer.warning(&text);
        } else {
            annotations.insert(name, value);
        }
    }
    annotations
}
