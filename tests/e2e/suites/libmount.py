"""What crun's tests use of libmount's Python module, which Debian 12 does not package: a table of
mounts from a file in the format of /proc/self/mountinfo (proc_pid_mountinfo(5))."""


class _Mount:
    def __init__(self, line):
        left, right = line.split(" - ", 1)
        self.target = left.split(" ")[4]
        self.vfs_options = left.split(" ")[5]
        self.fs_options = right.split(" ")[2]


class Table:
    def __init__(self, path):
        with open(path) as file:
            self._mounts = [_Mount(line.strip()) for line in file if " - " in line]

    def find_target(self, target):
        for mount in reversed(self._mounts):
            if mount.target == target:
                return mount
        raise KeyError(target)
