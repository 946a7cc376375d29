#!/usr/bin/env bash
# A headless Chromium for the tests of the web page, in .venv/browser (VENV
# names another folder than .venv): the one
# that npm packs, or Playwright's own where its download site can be reached.
#   bash tools/misc/get_browser.sh     # after tools/misc/setup_env.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
VENV=$(realpath "${VENV:-.venv}")
browser=$VENV/browser
[ ! -x "$browser/chromium" ] || exit 0
mkdir -p "$browser/npm"
if command -v npm > /dev/null; then
    npm install --silent --no-audit --no-fund --prefix "$browser/npm" @sparticuz/chromium >&2
    # It unpacks itself into the folder of temporary files.
    cd "$browser/npm"
    TMPDIR=$browser node --input-type=module \
        -e "await (await import('@sparticuz/chromium')).default.executablePath()"
else
    "$VENV/bin/python" -m playwright install chromium-headless-shell >&2
fi
