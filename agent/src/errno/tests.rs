//! The wording that engines look for.

use rustix::io::Errno;

use super::{Os, chain};

#[test]
fn wording_is_that_of_runc() {
    assert_eq!(Os(Errno::NOENT).to_string(), "no such file or directory");
    assert_eq!(Os(Errno::ACCESS).to_string(), "permission denied");
    assert_eq!(Os(Errno::ISDIR).to_string(), "is a directory");
    assert_eq!(Os(Errno::NOEXEC).to_string(), "exec format error");
}

#[test]
fn a_chain_is_one_line() {
    #[derive(Debug, thiserror::Error)]
    #[error("open /x")]
    struct Outer(#[source] Os);
    assert_eq!(
        chain(&Outer(Os(Errno::NOENT))),
        "open /x: no such file or directory"
    );
}
