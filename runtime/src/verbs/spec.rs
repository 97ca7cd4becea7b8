//! `spec`: a `config.json` to start from, the same that runc writes.

use std::{io, path::Path};

use serde::Serialize as _;
use serde_json::{Value, json};

use super::VerbError;
use crate::cli::Spec;

const TEMPLATE: &str = include_str!("spec.json");

const FILE: &str = "config.json";

/// # Errors
/// [`VerbError`].
pub(super) fn run(options: &Spec) -> Result<u8, VerbError> {
    use io::Write as _;

    let bundle = options.bundle.as_deref().unwrap_or(Path::new("."));
    let path = bundle.join(FILE);
    let file = match std::fs::File::create_new(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(VerbError::WrongStatus(format!(
                "File {FILE} exists. Remove it first"
            )));
        }
        result => result,
    };
    let text = if options.rootless {
        rootless(
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        )
    } else {
        TEMPLATE.trim_end().to_owned()
    };
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| VerbError::Io {
            action: "write",
            path,
            source,
        })?;
    Ok(0)
}

/// The template for a user who is not root, changed as runc changes it.
fn rootless(uid: u32, gid: u32) -> String {
    let mut spec: Value = serde_json::from_str(TEMPLATE).expect("the template is valid JSON");
    let linux = &mut spec["linux"];
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "user" }));
    }
    let mapping = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
    linux["uidMappings"] = mapping(uid);
    linux["gidMappings"] = mapping(gid);
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            *mount = json!({
                "destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
            });
        } else if let Some(options) = mount["options"].as_array_mut() {
            let of_an_id = |option: &Value| {
                let text = option.as_str().unwrap_or_default();
                text.starts_with("uid=") || text.starts_with("gid=")
            };
            options.retain(|option| !of_an_id(option));
        }
    }
    let mut text = Vec::new();
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    spec.serialize(&mut serde_json::Serializer::with_formatter(&mut text, tabs))
        .expect("a value is valid JSON");
    String::from_utf8(text).expect("JSON is UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rootless_differs_as_runcs_does() {
        let spec: Value = serde_json::from_str(&rootless(1000, 100)).unwrap();
        let linux = &spec["linux"];
        let kinds: Vec<_> = linux["namespaces"].as_array().unwrap().iter().collect();
        assert!(kinds.contains(&&json!({"type": "user"})));
        assert!(!kinds.contains(&&json!({"type": "network"})));
        assert_eq!(linux["uidMappings"][0]["hostID"], 1000);
        assert_eq!(linux["gidMappings"][0]["hostID"], 100);
        assert!(linux["resources"].is_null());
        assert!(!spec["mounts"].to_string().contains("gid="));
        let sys = spec["mounts"].as_array().unwrap().iter();
        let sys = sys.filter(|mount| mount["destination"] == "/sys");
        assert_eq!(
            sys.map(|mount| mount["type"].clone()).collect::<Vec<_>>(),
            ["none"]
        );
    }
}
