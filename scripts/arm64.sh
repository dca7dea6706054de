#!/usr/bin/env bash
# Proves the Python part of jetson.Dockerfile on an emulated arm64 Debian, without a container engine.
# Usage: scripts/arm64.sh [DIR]      (default: out/arm64-SUITE; kept for the next time)
# The image's own steps are run in it, on real aarch64 wheels; then, as the image's user and with a
# read-only root, the trained example is verified and answers as it does on this machine.
# Needs root on Debian or Ubuntu, 1 GB of disk and .venv with the extra `host` (PYTHON names another).
#   SUITE     Debian's release (default trixie, Python 3.13; bookworm has 3.11)
#   MIRROR    where debootstrap fetches it (default: debootstrap's own)
#   QEMU_CPU  what is emulated (default cortex-a76; an Orin has the Cortex-A78AE, its successor)
# pip inside takes this machine's PIP_INDEX_URL and PIP_CERT, else those of its `pip config`.
set -euo pipefail
die() { printf 'arm64: %s\n' "$*" >&2; exit 1; }
say() { printf '\n== %s\n' "$*"; }

[ "$(id -u)" = 0 ] || die "needs root"
# Every mount below is made in a namespace of its own and goes with it.
[ "${EDGEKIT_ARM64_MOUNTS:-}" ] || EDGEKIT_ARM64_MOUNTS=1 exec unshare --mount "$0" "$@"
cd "$(dirname "$0")/.."
suite=${SUITE:-trixie}
root=$(realpath -m "${1:-out/arm64-$suite}")
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
state=$root/var/lib/edgekit
export QEMU_CPU=${QEMU_CPU:-cortex-a76}
question="What is 58 + 67?"
[ -x "$python" ] || die "$python is missing; run scripts/setup.sh host, or set PYTHON"

emulate() { # let the kernel start aarch64 programs; taken back at the end if it was not so before
    local binfmt=/proc/sys/fs/binfmt_misc
    [ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt || die "the kernel has no binfmt_misc"
    [ ! -e $binfmt/qemu-aarch64 ] || return 0
    grep -v '^#' /usr/lib/binfmt.d/qemu-aarch64.conf | tr -d '\n' > $binfmt/register
    trap 'echo -1 > /proc/sys/fs/binfmt_misc/qemu-aarch64' EXIT
}

step() { # the RUN of jetson.Dockerfile that begins with $1, as a shell command
    awk -v start="RUN $1" 'index($0, start) == 1 { on = 1 } on { print } on && !/\\$/ { exit }' jetson.Dockerfile \
        | sed '1s/^RUN //' | grep . || die "jetson.Dockerfile has no step 'RUN $1'"
}

measure() { # a command, then its time and peak memory on stderr
    "$python" -c '
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(f"   {time.perf_counter() - start:.1f} s, {peak:.0f} MiB with the emulator", file=sys.stderr)
sys.exit(code)' "$@"
}

as_device() { # a shell command as the image's user, in the image's environment
    measure chroot --userspec=edgekit:edgekit --groups=edgekit,video "$root" /usr/bin/env -i \
        PATH=/opt/edgekit/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 HOME=/var/lib/edgekit QEMU_CPU="$QEMU_CPU" \
        EDGEKIT_BUNDLE=/var/lib/edgekit/bundle sh -c "cd /var/lib/edgekit && $1"
}

install_tools() {
    if ! command -v debootstrap >/dev/null || ! command -v qemu-aarch64-static >/dev/null; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap qemu-user-static >/dev/null \
            || die "could not install debootstrap and qemu-user-static"
    fi
}

make_debian() {
    [ ! -e "$root/.complete" ] || return 0
    rm -rf "$root" && mkdir -p "$root"
    debootstrap --arch=arm64 --foreign --variant=minbase --include=ca-certificates,python3,python3-venv \
        "$suite" "$root" ${MIRROR:+"$MIRROR"} > "$root.log" 2>&1 || die "debootstrap failed, see $root.log"
    chroot "$root" /debootstrap/debootstrap --second-stage >> "$root.log" 2>&1 || die "debootstrap failed, see $root.log"
    touch "$root/.complete"
}

build_image() { # what the stages `build` and `device` run, in one place
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    local cert index build user
    build=$(step 'python3 -m venv')
    user=$(step useradd)
    cert=${PIP_CERT:-$("$python" -m pip config get global.cert 2>/dev/null || true)}
    index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$cert" ] || install -m 644 "$cert" "$root/etc/pip-certificates.crt"
    rm -rf "$root/src" "$root/opt/edgekit" "$state" && mkdir "$root/src"
    # The build context: what .dockerignore lets through.
    sed -n 's/^!//p' .dockerignore | xargs cp -r -t "$root/src"
    find "$root/src" -name __pycache__ -prune -exec rm -r {} +
    measure chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin:/usr/sbin QEMU_CPU="$QEMU_CPU" HOME=/root \
        ${cert:+PIP_CERT=/etc/pip-certificates.crt} ${index:+PIP_INDEX_URL="$index"} \
        ENGINE=tensorrt CUDA_BINDINGS_VERSION="$(sed -n 's/.*CUDA_BINDINGS_VERSION=\([0-9.]*\).*/\1/p' jetson.Dockerfile | head -1)" \
        EDGEKIT_CONSTRAINTS=constraints.txt sh -c "set -e; cd /src; $build"
    if chroot "$root" id edgekit >/dev/null 2>&1; then chroot "$root" userdel edgekit; fi
    chroot "$root" sh -c "set -e; $user"
    du -sm "$root/opt/edgekit" | awk '{ print "   " $1 " MiB in /opt/edgekit" }'
}

like_the_image() { # from here on only the state folder can be written
    mount --bind "$root" "$root"
    mount --bind "$state" "$state"
    mount -o remount,bind,ro "$root"
    # No /sys: what it says of this machine's processor is not what is emulated, and ONNX Runtime
    # crashes over the difference. Without it, it warns and asks the (emulated) kernel instead.
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    if as_device "touch /opt/edgekit/x /tmp/x" 2>/dev/null; then die "the root is not read-only"; fi
    as_device "touch x && rm x" || die "the state folder cannot be written"
}

install_tools
emulate
say "Debian $suite, arm64, in $root"
make_debian
say "the steps of jetson.Dockerfile: $(chroot "$root" uname -m) ($QEMU_CPU), $(chroot "$root" python3 --version)"
build_image

say "a bundle and its answer from this machine ($(uname -m))"
"$python" -m edgekit build examples/edgekit-r1-tiny --target orin --out "$state/bundle" >/dev/null 2>&1
wanted=$("$python" -m edgekit run "$state/bundle" "$question" --temperature 0)
echo "$wanted"
chown -R --reference="$state" "$state/bundle"

say "as the image runs: user edgekit, read-only root, one volume"
like_the_image
as_device 'edgekit doctor --device'
as_device 'edgekit verify --no-graphs "$EDGEKIT_BUNDLE"'
got=$(as_device "edgekit run \"\$EDGEKIT_BUNDLE\" '$question' --temperature 0")
echo "$got"
[ "$got" = "$wanted" ] || die "the emulated arm64 answers otherwise"

say "the agent: healthy, then ready with the bundle, then ended"
as_device 'python -m device & agent=$!
    until python -m device --health; do kill -0 $agent || exit 1; sleep 1; done
    python - <<END
import time, urllib.error, urllib.request
for _ in range(120):
    try:
        print(urllib.request.urlopen("http://127.0.0.1:8000/readyz").read().decode())
        break
    except urllib.error.HTTPError:
        time.sleep(1)
else:
    raise SystemExit("the agent does not get ready")
END
    ready=$?; kill $agent; wait $agent && exit $ready' || die "the agent does not serve the bundle"

say "the bundle's check: whole, then with one byte changed"
check='edgekit verify --no-graphs --no-run "$EDGEKIT_BUNDLE"'
as_device "$check" >/dev/null 2>&1 || die "the check fails on a whole bundle"
blob=$(find "$state/bundle/blobs" -type f -print -quit)
printf 'damaged' | dd of="$blob" conv=notrunc status=none
if as_device "$check"; then die "the check passes a damaged bundle"; fi
say "arm64: all as on $(uname -m)"
