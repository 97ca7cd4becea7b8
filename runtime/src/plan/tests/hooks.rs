//! Hooks: who runs which, and what is wrong with them.

use lazaret_protocol::hook::Hook;

use super::*;

const LISTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

#[test]
fn each_list_goes_to_who_runs_it() {
    let hooks: Value = LISTS
        .iter()
        .map(|name| {
            let hook = json!({"path": format!("/{name}"), "args": ["a", "b"],
                              "env": ["N=v=w", "E="], "timeout": 3});
            ((*name).to_owned(), json!([hook, {"path": "/second"}]))
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    let plan = planned(|config| {
        set(config, "/hooks", hooks);
        set(config, "/annotations", json!({"b": "2", "a": "1"}));
    })
    .unwrap();
    let expected = |name: &str| {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            Hook {
                path: format!("/{name}"),
                args: vec!["a".to_owned(), "b".to_owned()],
                env: Some(vec![pair("N", "v=w"), pair("E", "")]),
                timeout_s: Some(3),
            },
            Hook {
                path: "/second".to_owned(),
                args: Vec::new(),
                env: None,
                timeout_s: None,
            },
        ]
    };
    let host = plan.host.hooks;
    assert_eq!(host.prestart, expected("prestart"));
    assert_eq!(host.create_runtime, expected("createRuntime"));
    assert_eq!(host.create_container, expected("createContainer"));
    assert_eq!(host.poststart, expected("poststart"));
    assert_eq!(host.poststop, expected("poststop"));
    let start = plan.container.start_hooks;
    assert_eq!(start.hooks, expected("startContainer"));
    assert_eq!(
        start.state,
        r#"{"ociVersion":"1.0.2-dev","id":"box","status":"created","bundle":"/bundle","annotations":{"a":"1","b":"2"}}"#
    );
}

#[test]
fn mistakes_are_named() {
    for (hook, message) in [
        (json!({"path": ""}), "path: must be an absolute path"),
        (json!({"path": "sh"}), "path: must be an absolute path"),
        (
            json!({"path": "/x", "args": ["a\0"]}),
            "args: must not hold a NUL character",
        ),
        (
            json!({"path": "/x", "env": ["A=1", "B"]}),
            "env[1]: must be of the form NAME=value",
        ),
        (
            json!({"path": "/x", "env": ["=1"]}),
            "env[0]: must be of the form NAME=value",
        ),
        (
            json!({"path": "/x", "timeout": 0}),
            "timeout: must be greater than 0",
        ),
        (
            json!({"path": "/x", "timeout": -1}),
            "timeout: must be greater than 0",
        ),
    ] {
        for list in LISTS {
            let error = error("/hooks", json!({ list: [{"path": "/fine"}, hook] }));
            assert_eq!(error, format!("hooks.{list}[1].{message}"));
        }
    }
}

#[test]
fn without_hooks_nothing_is_done() {
    let plan = planned(|config| set(config, "/hooks", json!({"poststop": []}))).unwrap();
    assert_eq!(plan.host.hooks, HostHooks::default());
    assert_eq!(plan.container.start_hooks, Default::default());
    assert!(!plan.host.hooks.at_creation());
}
