#!/usr/bin/env bash
# A 32-bit Arm C library, for qemu-user: all that a board runtime of ours needs.
# usage: prepare_armhf.sh FOLDER        (an existing FOLDER of the same recipe is kept)
set -euo pipefail
root=$1
stamp="$root/.made-by-$(sha256sum "$0" | cut -c1-16)"
[ -e "$stamp" ] && exit 0
rm -rf "$root" "$root.new"
mkdir -p "$root.new/debs"
cd "$root.new"
(cd debs && apt-get -q download libc6-armhf-cross)
dpkg-deb -x debs/*.deb files
mv files/usr/arm-linux-gnueabihf "$root"
cd /
rm -rf "$root.new"
touch "$stamp"
