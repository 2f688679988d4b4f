#!/usr/bin/env bash
# The image of deploy/Dockerfile without a daemon, by buildah, and a container of it by podman and runc: Debian's packages.
#
#   deploy/image.sh build TAG [--build-arg NAME=VALUE ...]   follows the Dockerfile
#   deploy/image.sh try TAG CLUSTER MODELS                   starts it: no root, a root file system that is read-only
#
# BASE=debian makes the image that the Dockerfile begins with from Debian's packages (debootstrap, MIRROR), where no
# registry of images is reached. CA names a bundle of certificates that pip has to trust.
# `try` asks the first task of CLUSTER, whose models lie in MODELS, until it answers; the container ends with the script.
set -euo pipefail
fail() { echo "image.sh: $1" >&2; exit "${2:-1}"; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ "$(id -u)" = 0 ] || fail "run it as root: it makes file systems"
export BUILDAH_ISOLATION=chroot

base() {
    local version=$1 folder name=docker.io/library/python:$1-slim-bookworm
    buildah inspect --type image "$name" >/dev/null 2>&1 && return
    folder=$(mktemp -d)
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv,util-linux bookworm \
        "$folder" ${MIRROR:+"$MIRROR"} >/dev/null
    [ "$(chroot "$folder" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$version" ] ||
        fail "Debian has another Python than $version"
    ln -s /usr/bin/python3 "$folder/usr/local/bin/python"
    rm "$folder/usr/lib/python$version/EXTERNALLY-MANAGED"  # the image is Python's own
    local container; container=$(buildah from scratch)
    buildah add --quiet "$container" "$folder" / >/dev/null
    buildah config --cmd python --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --quiet --rm "$container" "$name" >/dev/null
    rm -rf "$folder"
}

build() {
    local tag=$1; shift
    if [ "${BASE:-}" = debian ]; then
        base "$(sed -n 's/^ARG PYTHON=//p' "$root/deploy/Dockerfile")"
        set -- --pull-never "$@"
    fi
    [ -z "${CA:-}" ] || set -- --volume "$CA:/etc/ssl/certs/ca-certificates.crt:ro" --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$@"
    buildah build --layers --file "$root/deploy/Dockerfile" --ignorefile "$root/.dockerignore" --tag "$tag" "$@" "$root"
}

try() {
    local tag=$1 cluster models container port=${PORT:-8000} task
    cluster=$(realpath "$2") models=$(realpath "$3")
    task=$(sed -n 's/^ *- *name: *//p; s/^- .*name: *\([a-z-]*\).*/\1/p' "$cluster" | head -1)
    container=$(podman --runtime runc --cgroup-manager cgroupfs run --detach --network host \
        --ulimit nofile=16384:16384 --ulimit nproc=16384:16384 --read-only --read-only-tmpfs=false \
        --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp:exec,mode=1777 --tmpfs /cache:mode=1777 \
        --shm-size 256m --env SEXTET_METRICS_ADDRESS=off \
        --volume "$cluster:/sextet/cluster.yaml:ro" --volume "$models:/sextet/models:ro" \
        "$tag" sextet serve cluster.yaml --port "$port")
    trap 'podman rm --force --time 60 '"$container"' >/dev/null' EXIT
    for _ in $(seq 120); do
        if podman exec "$container" wget -qO- "http://127.0.0.1:$port/ready" 2>/dev/null; then break; fi
        [ "$(podman inspect --format '{{.State.Running}}' "$container")" = true ] || { podman logs "$container" >&2; fail "it ended"; }
        sleep 1
    done
    podman exec "$container" wget -qO- --header 'content-type: application/json' --post-data '{"inputs": "good"}' \
        "http://127.0.0.1:$port/$task" || { podman logs "$container" >&2; fail "/$task does not answer"; }
    echo
    [ "$(podman exec "$container" id -u)" = 1000 ] || fail "it runs as another user than 1000"
    ! podman exec "$container" touch /sextet/written 2>/dev/null || fail "its root file system can be written"
    echo "tried $tag: $task answers as user 1000 on a read-only file system; SBOM of $(podman exec "$container" \
        python -c 'import json; print(len(json.load(open("/usr/share/doc/sextet/sbom.cdx.json"))["components"]))') components"
}

case "${1:-} $#" in
    build\ *) [ $# -ge 2 ] || fail "allowed: image.sh build TAG [--build-arg NAME=VALUE ...]" 2; shift; build "$@" ;;
    "try 4") shift; try "$@" ;;
    *) fail "allowed: image.sh build TAG [--build-arg NAME=VALUE ...], image.sh try TAG CLUSTER MODELS" 2 ;;
esac
