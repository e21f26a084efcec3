#!/bin/bash
# install_pgbouncer.sh FOLDER: unpack Debian 12's pgbouncer, with the libraries it may miss, into FOLDER.
# Nothing is installed in the system: no package database, no users, no services. About 2 MB, once.
set -euo pipefail

folder=$1
[ -x "$folder/usr/sbin/pgbouncer" ] && exit 0

. /etc/os-release
if [ "${ID:-}" != debian ] || [ "${VERSION_ID:-}" != 12 ]; then
    echo "pgbouncer's package is taken from Debian 12; this is ${PRETTY_NAME:-another system}" >&2
    exit 1
fi

drafts=$(mktemp -d)
trap 'rm -rf "$drafts"' EXIT
wanted="pgbouncer libevent-2.1-7 libc-ares2"
fetch() { (cd "$drafts" && apt-get download -qq -o APT::Sandbox::User=root $wanted) >"$drafts/apt.log" 2>&1; }
if ! fetch; then
    [ "$(id -u)" = 0 ] && apt-get update -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=15 >"$drafts/update.log" 2>&1
    fetch || { echo "apt cannot fetch pgbouncer: $(tail -n 1 "$drafts/apt.log")" >&2; exit 1; }
fi

mkdir -p "$folder.tmp"
for package in "$drafts"/*.deb; do dpkg-deb -x "$package" "$folder.tmp"; done
rm -rf "$folder"
mv "$folder.tmp" "$folder"
