#!/bin/sh
# Stands for runc's script of the same name, which downloads a busybox and a Debian: names the
# archives that were made of Debian's packages instead. They lie beside the test data, as the
# downloaded ones would; tar tells by itself that they are not compressed.
here=$(dirname "$(readlink -f "$0")")/testdata
echo "BUSYBOX_IMAGE=$here/busybox.tar"
echo "DEBIAN_IMAGE=$here/debian.tar"
