#!/usr/bin/env bash
# What the tests need beyond Python packages: g++ compiles the simulated Gaudi, chromium opens the preview's pages.
set -euo pipefail
missing=()
for program in g++ chromium; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  apt-get update -q
  apt-get install -qy --no-install-recommends "${missing[@]}"
else
  echo "The tests need ${missing[*]}. Type: sudo apt-get install -y ${missing[*]}" >&2
  exit 1
fi
