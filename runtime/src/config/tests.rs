//! Every wrong key is an error that names the key and the file.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("/etc/lazaret/config.toml"), text).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
        vmm = "/a/vmm"
        kernel = "vmlinux"
        initramfs = "../initramfs"
        memory_mib = 512
        vcpus = 4
        huge_pages = true
        kernel_parameters = "initcall_debug"
        console = "/tmp/console"
        boot_timeout_ms = 1500
        annotations = ["vm.console"]
        "#,
    )
    .unwrap();
    assert_eq!(
        config,
        Config {
            vmm: "/a/vmm".into(),
            kernel: "/etc/lazaret/vmlinux".into(),
            initramfs: "/etc/lazaret/../initramfs".into(),
            memory_mib: 512,
            vcpus: 4,
            huge_pages: true,
            kernel_parameters: "initcall_debug".to_owned(),
            console: Some("/tmp/console".into()),
            boot_timeout_ms: 1500,
            annotations: vec!["vm.console".to_owned()],
        }
    );
}

#[test]
fn wrong_keys_and_values_are_named() {
    let file = "configuration /etc/lazaret/config.toml";
    for (text, message) in [
        ("memry_mib = 1", ": unknown key `memry_mib`"),
        (
            "memory_mib = 1",
            ": `memory_mib` must be a number from 64 to 1048576",
        ),
        (
            "memory_mib = \"1\"",
            ": `memory_mib` must be a number from 64 to 1048576",
        ),
        ("vcpus = 65", ": `vcpus` must be a number from 1 to 64"),
        ("vcpus = -1", ": `vcpus` must be a number from 1 to 64"),
        ("huge_pages = 1", ": `huge_pages` must be true or false"),
        ("kernel = \"\"", ": `kernel` must be a path"),
        ("vmm = 3", ": `vmm` must be a path"),
        (
            "kernel_parameters = \"a\\nb\"",
            ": `kernel_parameters` must be a string of at most 1024 printable ASCII characters",
        ),
        (
            "annotations = [\"vm.memry\"]",
            ": `annotations` must be a list of some of: vm.console, vm.memory_mib, vm.vcpus",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), format!("{file}{message}"));
    }
}

#[test]
fn syntax_errors_name_the_line() {
    let error = parse("vcpus = 1\nmemory_mib = = 3\n").unwrap_err();
    assert!(
        error.starts_with("configuration /etc/lazaret/config.toml:2: "),
        "{error}"
    );
    assert!(!error.contains('\n'));
}

#[test]
fn only_a_named_file_must_exist() {
    let error = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read configuration /nonexistent/config.toml"
    );
}

proptest! {
    #[test]
    fn no_text_panics(text: String) {
        let _ = parse(&text);
    }

    #[test]
    fn every_memory_size_in_range_is_taken(memory_mib in MEMORY_MIB) {
        prop_assert_eq!(parse(&format!("memory_mib = {memory_mib}")).unwrap().memory_mib, memory_mib);
    }
}
