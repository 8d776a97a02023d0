#!/usr/bin/env bash
# Files of a Debian system of another architecture, for qemu-user: no chroot, no binfmt, no root.
# usage: prepare.sh arm64|armhf FOLDER        (an existing FOLDER of the same recipe is kept)
set -euo pipefail
arch=$1 root=$2
stamp="$root/.made-by-$(sha256sum "$0" | cut -c1-16)"
[ -e "$stamp" ] && exit 0
packages="libc6 libgcc-s1 libstdc++6"
if [ "$arch" = arm64 ]; then
  packages+=" python3.11-minimal libpython3.11-minimal libpython3.11-stdlib zlib1g libexpat1 libffi8 \
    libbz2-1.0 liblzma5 libssl3 libuuid1 libsqlite3-0 libncursesw6 libtinfo6 libreadline8 libdb5.3 \
    libnsl2 libtirpc3 libgssapi-krb5-2"
fi
rm -rf "$root"
mkdir -p "$root.new"/{lists/partial,cache/archives/partial,debs,files}
cd "$root.new"
touch status
apt=(apt-get -q -o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o "Dir::State=$PWD"
     -o "Dir::State::lists=$PWD/lists" -o "Dir::State::status=$PWD/status" -o "Dir::Cache=$PWD/cache"
     -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
"${apt[@]}" update
(cd debs && "${apt[@]}" download $packages)
for deb in debs/*.deb; do dpkg-deb -x "$deb" files; done
if [ "$arch" = arm64 ]; then
  python="${PYTHON:-python3}"
  "$python" -m pip install --quiet --disable-pip-version-check --target files/site \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 \
    --python-version 3.11 --implementation cp --only-binary=:all: \
    "apache-tvm==0.27.0.post1" "apache-tvm-ffi==0.1.14.post0" "msgspec>=0.20,<0.23" "numpy>=2.2,<2.5" \
    "platformdirs>=4.5,<5" "rich>=14.2,<16" "typer>=0.20,<0.30"
fi
mv files "$root"
cd /
rm -rf "$root.new"
touch "$stamp"
