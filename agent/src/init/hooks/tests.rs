//! What of a hook needs no container; the rest is in `tests/containers/hooks.rs`.

use super::*;

#[test]
fn the_state_gets_the_pid() {
    let state = with_pid(r#"{"id":"{x}","annotations":{"a":"{"}}"#, 1);
    assert_eq!(state, r#"{"pid":1,"id":"{x}","annotations":{"a":"{"}}"#);
}
