//! Each rule finds what breaks it, and nothing in what keeps it.

use super::*;

fn whats(findings: &[Finding]) -> Vec<(usize, &str)> {
    findings
        .iter()
        .map(|finding| (finding.line, finding.what.as_str()))
        .collect()
}

fn function(lines: usize) -> String {
    let body = "    call();\n".repeat(lines - 2);
    format!("//! x\npub(crate) async fn f() {{\n{body}}}\n")
}

#[test]
fn a_header_is_needed() {
    assert_eq!(rust::check("a/src/lib.rs", "//! Says what.\n"), []);
    let findings = rust::check("a/src/lib.rs", "use x;\n//! late\n");
    assert_eq!(whats(&findings), [(1, "does not begin with a //! header")]);
}

#[test]
fn files_are_short_and_tests_do_not_count() {
    let long = |lines: usize| format!("//! x\n{}", "use a;\n".repeat(lines - 1));
    assert_eq!(rust::check("a.rs", &long(499)), []);
    assert_eq!(rust::check("a.rs", &long(500)).len(), 1);
    let tested = format!(
        "{}#[cfg(test)]\nmod tests {{\n{}}}\n",
        long(499),
        "\n".repeat(99)
    );
    assert_eq!(rust::check("a.rs", &tested), []);
    assert_eq!(rust::check("a/src/b/tests.rs", &long(900)), []);
    // A sibling file with the tests ends nothing.
    let declared = format!(
        "//! x\n#[cfg(test)]\nmod tests;\n{}",
        "use a;\n".repeat(497)
    );
    assert_eq!(rust::check("a.rs", &declared).len(), 1);
}

#[test]
fn functions_are_short() {
    assert_eq!(rust::check("a.rs", &function(69)), []);
    assert_eq!(
        whats(&rust::check("a.rs", &function(70))),
        [(2, "the function has 70 lines, at most 69 are allowed")]
    );
    // A declaration without body does not reach into what follows.
    let declared = format!(
        "//! x\ntrait T {{\n    fn f();\n{}}}\n",
        "    type A;\n".repeat(80)
    );
    assert_eq!(rust::check("a.rs", &declared), []);
}

#[test]
fn vague_names_are_found_in_modules_types_and_paths() {
    let text = "//! x\nmod util;\npub(crate) struct VmManager;\nenum Inner {}\nlet inner = 1;\n\
         // struct Helper\nstruct Uncommon;\nstruct Utility;\n";
    assert_eq!(
        whats(&rust::check("a.rs", text)),
        [
            (2, "'util' names no purpose"),
            (3, "'VmManager' names no purpose"),
            (4, "'Inner' names no purpose"),
        ]
    );
    assert_eq!(rust::check("a/src/test_helpers.rs", "//! x\n").len(), 1);
}

#[test]
fn unsafe_is_a_keyword_not_a_word() {
    assert!(rust::has_unsafe("    let x = unsafe { f() };"));
    assert!(rust::has_unsafe("unsafe impl Send for X {}"));
    assert!(!rust::has_unsafe("#![forbid(unsafe_code)]"));
    assert!(!rust::has_unsafe("// unsafe"));
    assert!(!rust::has_unsafe("let x = \"unsafe\";"));
}

#[test]
fn the_list_of_unsafe_files_is_exact() {
    let findings = unsafe_findings(&["a.rs", "b.rs"], &["b.rs", "c.rs"]);
    let paths: Vec<_> = findings.iter().map(|finding| &finding.path).collect();
    assert_eq!(paths, ["a.rs", UNSAFE_FILES]);
    assert!(findings[1].what.contains("c.rs"));
}

#[test]
fn open_ends_are_found_as_words() {
    let word = concat!("TO", "DO");
    assert_eq!(
        paths::open_ends("a", &format!("x\n// {word}: later\n"))[0].line,
        2
    );
    assert_eq!(paths::open_ends("a", &format!("{word}S and methods")), []);
}

#[test]
fn paths_of_the_architecture_exist() {
    let root = workspace::root();
    let text = "`xtask/src/main.rs` `xtask/` `/dev/kvm` `id/rootfs` `xtask/src/none.rs`\n`a/b.rs`";
    let findings = paths::missing("ARCHITECTURE.md", text, root);
    assert_eq!(
        whats(&findings),
        [
            (1, "xtask/src/none.rs does not exist"),
            (2, "a/b.rs does not exist")
        ]
    );
}
