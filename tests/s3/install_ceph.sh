#!/bin/bash
# install_ceph.sh FOLDER: unpack Debian 12's ceph-mon, ceph-osd and radosgw, with the libraries they miss, into FOLDER.
# Nothing is installed in the system: no package database, no users, no services. About 220 MB, once.
set -euo pipefail

folder=$1
[ -x "$folder/usr/bin/radosgw" ] && exit 0

. /etc/os-release
if [ "${ID:-}" != debian ] || [ "${VERSION_ID:-}" != 12 ] || [ "$(uname -m)" != x86_64 ]; then
    echo "Ceph's packages are taken from Debian 12 on x86_64; this is ${PRETTY_NAME:-another system} on $(uname -m)" >&2
    exit 1
fi
[ -x /usr/bin/python3 ] || { echo "Debian's /usr/bin/python3 is not there" >&2; exit 1; }

drafts=$(mktemp -d)
trap 'rm -rf "$drafts"' EXIT

# What only volumes, udev and command lines need; nothing that the three daemons link.
unneeded='^(nvme-cli|smartmontools|parted|hdparm|gdisk|cryptsetup-bin|dmidecode|logrotate|lvm2|dmeventd|xfsprogs|sudo'
unneeded+='|uuid-runtime|libnvme1|liburcu8|libinih1|libparted2|liblvm2cmd2.03|libdevmapper-event1.02.1|libcephfs2'
unneeded+='|python3-(urllib3|requests|chardet|certifi|idna|charset-normalizer|wcwidth|prettytable|ceph-argparse'
unneeded+='|ceph-common|cephfs|rbd|rgw|ceph))$'

packages() {
    apt-get install -s --no-install-recommends ceph-mon ceph-osd radosgw ceph-common 2>"$drafts/apt.log" |
        awk '/^Inst/ {print $2}' | grep -Ev "$unneeded"
}

if ! wanted=$(packages) && [ "$(id -u)" = 0 ]; then
    apt-get update -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=15 >"$drafts/update.log" 2>&1 ||
        { echo "apt-get update failed: $(tail -n 1 "$drafts/update.log")" >&2; exit 1; }
    wanted=$(packages) || wanted=
fi
[ -n "${wanted:-}" ] || { echo "apt knows no Ceph: $(tail -n 1 "$drafts/apt.log"); run apt-get update" >&2; exit 1; }

# shellcheck disable=SC2086
(cd "$drafts" && apt-get download -qq -o APT::Sandbox::User=root $wanted)

mkdir -p "$folder.tmp"
for package in "$drafts"/*.deb; do dpkg-deb -x "$package" "$folder.tmp"; done
rm -rf "$folder.tmp"/usr/share/{doc,man,locale,lintian} "$folder"
mv "$folder.tmp" "$folder"
