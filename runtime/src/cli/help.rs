//! What `--help` says of a verb beyond its options: a paragraph on what it does, and an example
//! where one helps. The man pages are made of the same texts.

/// After the global options of `lazaret --help`.
pub(super) const LAZARET: &str = "\
Lazaret takes runc's place: verbs, options, files and exit codes are runc's. Every container gets a
virtual machine of its own, by KVM; `lazaret check` says what this machine lacks for that.

A container is made from a bundle: a directory with a specification file named config.json and a
root file system. To start a new instance of a container:

    # lazaret run [ -b bundle ] <container-id>

<container-id> is your name for the instance and must be unique on this host.";

pub(super) const CREATE: &str = "\
Makes the container's virtual machine and the container in it, up to the point where its process
waits to be started with `lazaret start`. The process id that --pid-file gets is that of the
container's monitor on this host: it ends when the container's process ends, and as it did.

Example:
    # lazaret create --bundle /containers/web --pid-file /run/web.pid web";

pub(super) const START: &str = "\
Releases the process of a container that was made with `lazaret create`.";

pub(super) const STATE: &str = "\
Prints the state of a container as JSON: its status, the process id of its monitor on this host,
its bundle and its annotations.";

pub(super) const KILL: &str = "\
Sends a signal to the first process of a container, which gets it inside the virtual machine.

Example: end the container web at once:
    # lazaret kill web KILL";

pub(super) const DELETE: &str = "\
Removes what is left of a container that has stopped: its state, and its virtual machine should
anything of it be left. With --force a container that still runs is killed first, and one that does
not exist is no error.

Example:
    # lazaret delete web";

pub(super) const RUN: &str = "\
Makes a container from a bundle and starts it; without --detach, waits for its end, passes signals
on, removes the container, and exits as its process did.

Example: run what config.json in the current directory says:
    # lazaret run web";

pub(super) const EXEC: &str = "\
Runs a further process in a container that was made before. Exits as the process did; with 255 when
it could not be run.

Example: list the processes of the container web, if it has the program ps:
    # lazaret exec web ps";

pub(super) const LIST: &str = "\
Lists the containers of the state directory that --root names.

Example:
    # lazaret --root /run/user/0/mine list";

pub(super) const SPEC: &str = "\
Writes a config.json to start from, the same that runc writes. It runs `sh` in a root file system
in the folder `rootfs`; edit it for anything else.

Example: a bundle with busybox in it:
    # mkdir -p bundle/rootfs/bin && cd bundle
    # cp /bin/busybox rootfs/bin/sh
    # lazaret spec
    # lazaret run shell

With --rootless the file suits a user who is not root, as for runc; lazaret itself needs root to
run it.";

pub(super) const PS: &str = "\
Shows the processes of a container as the guest's kernel knows them, with the options of ps: a
selection that ps would make is made by the container already. Known are -e, -A, -a, -f, -x, ax, u,
aux, w, and -o with a list of columns. The process ids are the guest's.

With --format json, what comes is a list of process ids of this host, as callers of runc expect
them: that of the container's monitor, which stands for all that is in the virtual machine.

Example:
    # lazaret ps web -o pid,user,args";

pub(super) const PAUSE: &str = "\
Suspends all processes of a container until `lazaret resume`.";

pub(super) const RESUME: &str = "\
Resumes all processes of a container that was paused with `lazaret pause`.";

pub(super) const EVENTS: &str = "\
Prints the container's figures as a line of JSON at each interval, and a line whenever the guest's
kernel killed a process of it for want of memory. Ends when the container does.

Example: what a monitoring agent would read:
    # lazaret events --interval 10s web";

pub(super) const UPDATE: &str = "\
Changes limits of a container while it lives: all that are given, or none if one is refused. They
hold inside the guest. The virtual machine keeps the memory and the CPUs it was made with: a limit
beyond them has no effect, which a warning says.

Example:
    # lazaret update --memory 64M --pids-limit 100 web";

/// Of `update --resources`.
pub(super) const RESOURCES: &str = "\
JSON file with the limits, or - for standard input; all other options are ignored then.

The format is that of linux.resources in config.json; what is left out stays as it is:
  {
    \"memory\": { \"limit\": 0, \"reservation\": 0, \"swap\": 0, \"checkBeforeUpdate\": true },
    \"cpu\": { \"shares\": 0, \"quota\": 0, \"burst\": 0, \"period\": 0, \"cpus\": \"\", \"mems\": \"\",
             \"idle\": 0 },
    \"blockIO\": { \"weight\": 0 },
    \"pids\": { \"limit\": 0 }
  }";

pub(super) const FEATURES: &str = "\
Prints as JSON what of the runtime-spec this runtime can do, in the format of the spec's features.md.";

pub(super) const CHECK: &str = "\
Looks at everything a container's virtual machine needs, and says of each thing whether it is there
and what to do if it is not. Exits with 1 if something is missing.";

pub(super) const CHECKPOINT: &str = "\
Saves the state of a container. Not supported yet: the options are runc's, and the answer is an
error.";

pub(super) const RESTORE: &str = "\
Restores a container from a checkpoint. Not supported yet: the options are runc's, and the answer is
an error.";

pub(super) const VERSION: &str = "\
Prints the version of lazaret, the commit it was built from, and the version of the runtime-spec
whose fields it knows.";
