#!/usr/bin/env bash
# Installs what the tests start on loopback, from Debian or Ubuntu: mosquitto, Prometheus (with
# promtool), Alertmanager (with amtool), PostgreSQL, D-Bus with a mock of ModemManager. Does nothing
# for what is there; starts nothing.
set -euo pipefail
missing=()
command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || missing+=(mosquitto)
{ command -v prometheus && command -v promtool; } >/dev/null || missing+=(prometheus)
{ command -v prometheus-alertmanager && command -v amtool; } >/dev/null || missing+=(prometheus-alertmanager)
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
command -v dbus-daemon >/dev/null || missing+=(dbus-daemon)
/usr/bin/python3 -c 'import dbusmock' 2>/dev/null || missing+=(python3-dbusmock)
[ ${#missing[@]} -gt 0 ] || exit 0

sudo=$([ "$(id -u)" = 0 ] || echo sudo)
echo "services: installing ${missing[*]}" >&2
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
# Debian starts services that it installs: the tests start their own, on free ports.
if [ -d /run/systemd/system ]; then
    for unit in mosquitto prometheus prometheus-alertmanager postgresql; do
        case " ${missing[*]} " in *" $unit "*) $sudo systemctl disable --now "$unit" ;; esac
    done
fi
