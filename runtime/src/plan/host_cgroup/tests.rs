//! Paths, units and slices; what bounds a sandbox is in the golden plans.

use proptest::prelude::*;

use super::*;

#[test]
fn paths_are_cleaned_as_in_runc() {
    for (path, clean) in [
        ("", "box"),
        ("/a/b", "/a/b"),
        ("/a/./b/../c/", "/a/c"),
        ("/../../a", "/a"),
        ("a/b", "a/b"),
        ("../../a", "a"),
        ("slice:prefix:name", "slice:prefix:name"),
    ] {
        assert_eq!(clean_path(path, "box").unwrap(), clean, "{path}");
    }
    for path in ["/", ".", "/..", "a/.."] {
        let message = format!("linux.cgroupsPath: {path:?} is no cgroup of its own");
        assert_eq!(clean_path(path, "box").unwrap_err().to_string(), message);
    }
}

#[test]
fn slices_are_expanded_as_systemd_does() {
    for (slice, path) in [
        ("a.slice", Some("/a.slice")),
        ("a-b.slice", Some("/a.slice/a-b.slice")),
        (
            "test-a-b.slice",
            Some("/test.slice/test-a.slice/test-a-b.slice"),
        ),
        ("-.slice", Some("/")),
        (".slice", None),
        ("-a.slice", None),
        ("a--b.slice", None),
        ("a-.slice", None),
        ("a/b.slice", None),
        ("a", None),
        ("a.slice.d", None),
    ] {
        assert_eq!(expand_slice(slice).as_deref(), path, "{slice}");
    }
}

fn place(slice: &str, slice_path: &str, unit: &str) -> Place {
    Place::Unit {
        slice: slice.to_owned(),
        slice_path: slice_path.to_owned(),
        unit: unit.to_owned(),
    }
}

#[test]
fn units() {
    assert_eq!(
        unit("", "box").unwrap(),
        place("system.slice", "/system.slice", "lazaret-box.scope")
    );
    assert_eq!(
        unit("m-n.slice:libpod:1234", "box").unwrap(),
        place("m-n.slice", "/m.slice/m-n.slice", "libpod-1234.scope")
    );
    assert_eq!(
        unit(":p:n", "box").unwrap(),
        place("system.slice", "/system.slice", "p-n.scope")
    );
    for (path, message) in [
        (
            "/a/b",
            "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" for \
             systemd cgroups, got \"/a/b\" instead",
        ),
        ("a:b:c", "linux.cgroupsPath: invalid slice name: a"),
        (
            "a.slice:b:",
            "linux.cgroupsPath: \"b-.scope\" is not the name of a unit",
        ),
    ] {
        assert_eq!(unit(path, "box").unwrap_err().to_string(), message);
    }
}

proptest! {
    /// No path leads above where it starts.
    #[test]
    fn clean_paths_are_clean(path in "/?((\\.\\.|\\.|a|b)/){0,6}(\\.\\.|\\.|a)?") {
        if let Ok(clean) = clean_path(&path, "box") {
            prop_assert_eq!(clean.starts_with('/'), path.starts_with('/'));
            let parts = clean.trim_start_matches('/').split('/');
            for part in parts {
                prop_assert!(!matches!(part, "" | "." | ".."));
            }
            prop_assert_eq!(clean_path(&clean, "x").unwrap(), clean);
        }
    }

    /// The last slice of the path is the slice itself, and each begins as the one before.
    #[test]
    fn slices_nest(slice in "[a-z-]{0,8}(\\.slice)?") {
        if let Some(path) = expand_slice(&slice)
            && path != "/"
        {
            let parts: Vec<&str> = path.split('/').skip(1).collect();
            prop_assert_eq!(parts.last(), Some(&slice.as_str()));
            for pair in parts.windows(2) {
                let outer = pair[0].trim_end_matches(".slice");
                let prefix = format!("{}-", outer);
                prop_assert!(pair[1].starts_with(&prefix));
            }
        }
    }

    #[test]
    fn no_text_panics(text: String) {
        let _ = clean_path(&text, "box");
        let _ = unit(&text, "box");
    }
}
