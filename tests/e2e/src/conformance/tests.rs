//! The page, the catalogue, the cases and the source tree agree.

use std::{collections::BTreeSet, fs, path::Path};

use super::{catalogue::*, *};
use crate::runtime::Kind;

/// The checkout.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn ids(wanted: impl Fn(&Entry) -> bool) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for document in documents().unwrap() {
        for section in &document.section {
            for entry in section.entry.iter().filter(|entry| wanted(entry)) {
                let id = id(&document, section, entry);
                assert!(ids.insert(id.clone()), "{id} is there twice");
            }
        }
    }
    ids
}

#[test]
fn the_page_is_what_the_tests_say() {
    let path = root().join("docs/conformance.md");
    let text = document().unwrap();
    if std::env::var_os("LAZARET_BLESS").is_some() {
        fs::write(&path, text).unwrap();
        return;
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == text,
        "{} is out of date: set LAZARET_BLESS and run this test again",
        path.display()
    );
}

/// The counts of the text of the specification, version 1.3.0.
#[test]
fn no_keyword_is_left_out() {
    for document in documents().unwrap() {
        let sections = || document.section.iter();
        let must: u32 = sections().map(|section| section.must).sum();
        let should: u32 = sections().map(|section| section.should).sum();
        let expected = match document.document.as_str() {
            "runtime" => (56, 0),
            "runtime-linux" => (1, 0),
            "config" => (149, 46),
            "config-linux" => (101, 16),
            "features" => (10, 2),
            "features-linux" => (10, 0),
            other => panic!("{other} is no document"),
        };
        assert_eq!((must, should), expected, "{}", document.document);
    }
}

#[test]
fn cases_name_requirements_that_bind_the_runtime() {
    let known = ids(|entry| entry.on.is_none());
    for (id, cases) in coverage() {
        assert!(
            known.contains(&id),
            "{} covers {id}, which is none",
            cases[0].0
        );
    }
}

#[test]
fn every_requirement_is_proved_or_explained() {
    let coverage = coverage();
    let mut wrong = Vec::new();
    for document in documents().unwrap() {
        for section in &document.section {
            for entry in section.entry.iter().filter(|entry| entry.on.is_none()) {
                let id = id(&document, section, entry);
                let cases = coverage.get(&id).into_iter().flatten();
                let proved = !entry.tests.is_empty()
                    || cases
                        .into_iter()
                        .any(|(_, case)| case.kinds.contains(&Kind::Lazaret));
                let reasons = [&entry.not_met, &entry.not_applicable];
                let reasons = reasons.into_iter().flatten().count();
                match (proved, reasons) {
                    (true, 0) | (false, 1) => {}
                    (true, _) => wrong.push(format!("{id} is covered: remove its reason")),
                    (false, 0) => wrong.push(format!("{id} is neither covered nor explained")),
                    (false, _) => wrong.push(format!("{id} has two reasons")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unit_tests_that_are_named_exist() {
    for document in documents().unwrap() {
        for entry in document.section.iter().flat_map(|section| &section.entry) {
            for test in &entry.tests {
                let (path, name) = test.rsplit_once("::").expect(test);
                let text = fs::read_to_string(root().join(path)).expect(test);
                assert!(text.contains(&format!("fn {name}(")), "there is no {test}");
            }
        }
    }
}

#[test]
fn every_difference_has_a_verdict() {
    for (name, case) in cases::all() {
        let limited = [Kind::Runc, Kind::Crun]
            .iter()
            .any(|kind| !case.kinds.contains(kind));
        if limited && !case.covers.is_empty() {
            assert!(
                !case.right.is_empty(),
                "{name} does not say which runtime is right"
            );
        }
        assert!(
            limited || case.right.is_empty(),
            "{name} has a verdict, and runs everywhere"
        );
    }
}

#[test]
fn ids_are_single_or_a_range() {
    assert_eq!(single("runtime#start-1"), ["runtime#start-1"]);
    assert_eq!(single("a#b-2..4"), ["a#b-2", "a#b-3", "a#b-4"]);
    assert_eq!(single("a#b-2..x"), ["a#b-2..x"]);
}

#[test]
fn cells_hold_no_bar() {
    for document in documents().unwrap() {
        for entry in document.section.iter().flat_map(|section| &section.entry) {
            let reasons = [&entry.not_met, &entry.not_applicable, &entry.note];
            let texts = reasons.into_iter().flatten().chain([&entry.says]);
            for text in texts {
                assert!(!text.contains('|') && !text.contains('\n'), "{text:?}");
            }
        }
    }
}
