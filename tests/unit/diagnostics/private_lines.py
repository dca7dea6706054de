"""Lines as ModemManager, mmcli, the kernel, the journal and our own log write them.

The forms are those of ModemManager 1.20 and mmcli as reports show them; every identity is made up
(test numbers: MCC 001, IMEIs of the test TAC 00440245).
"""

from __future__ import annotations

IMSI, IMEI, ICCID, MSISDN = (
    "001010123456789",
    "004402459876543",
    "89490200001234567894",
    "4915112345",
)
CELL, AREA = "01A2B3C4", "00A1B2"
CLIENT, CLIENT6 = "203.0.113.77", "2001:db8:85a3::8a2e:370:7334"
KEY, PROMPT = "sk-3f9a8b7c6d5e4f3a2b1c", "my neighbour is ill"
SECRETS = (IMSI, IMEI, ICCID, MSISDN, CELL, AREA, CLIENT, CLIENT6, KEY, PROMPT)

LINES = (
    f"ModemManager[812]: <dbg> [1767016030.32] [ttyUSB2/at] <-- '<CR><LF>{IMSI}<CR><LF><CR><LF>OK'",
    "ModemManager[812]: <dbg> [1767016030.32] [ttyUSB2/at] --> 'AT+CIMI<CR>'",
    f'ModemManager[812]: <dbg> [at] <-- \'<CR><LF>+CREG: 2,1,"{AREA}","{CELL}",7<CR><LF>\'',
    f"ModemManager[812]: <dbg> [at] <-- '<CR><LF>+QCCID: {ICCID}<CR><LF>'",
    f"ModemManager[812]: <inf> [modem0] SIM identifier has not changed: {ICCID}",
    f"ModemManager[812]: <inf> [modem0] SIM imsi has not changed: {IMSI}",
    f"ModemManager[8]: <inf> [modem0] 3GPP location updated (MCC: '001', MNC: '01', location area "
    f"code: 'FFFE', tracking area code: '{AREA}', cell ID: '{CELL}')",
    f"ModemManager[812]: <dbg> [/dev/cdc-wdm0] received message... >>>>>> RAW: data = 03:00:{CELL}",
    f'gammu: Parsed raw string "{CELL}" of +CREG: 2,1',
    f'+QENG: "servingcell","NOCONN","LTE","FDD",001,01,{CELL},285,1300,3,{AREA},-95,-11,-64,13,-',
    f"  Hardware |          equipment id: {IMEI}",
    f"  Numbers  |                   own: {MSISDN}",
    f"  3GPP     |                  imei: {IMEI}",
    "  3GPP     |           operator id: 00101",
    f"           |               cell id: {CELL}",
    f"  Properties |             iccid: {ICCID}",
    f"modem.3gpp.imei                                 : {IMEI}",
    f"modem.location.3gpp.tac                         : {AREA}",
    f"  GPS      |  longitude: 13.{CELL}",
    f"$GPGGA,094020.00,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47 {CELL}",
    f'pppd[91]: sent [PAP AuthReq id=0x1 user="{MSISDN}" password="{KEY}"]',
    f"dialing +{MSISDN} now",
    f"number {IMEI[:2]}-{IMEI[2:8]}-{IMEI[8:14]}-{IMEI[14:]} is stolen",
    f"kernel: usb 1-3: SerialNumber: {IMEI}",
    f"kernel: [UFW BLOCK] IN=eth0 MAC=00:04:4b:aa:bb:cc:dd SRC={CLIENT} DST=10.0.0.1 LEN=60",
    f'nginx: {CLIENT6} - - "POST /v1/chat/completions HTTP/1.1" 200',
    f"sshd[7]: Accepted publickey for root from {CLIENT} port 5022",
    f"curl -H 'Authorization: Bearer {KEY}' https://x",
    f"https://user:{KEY}@example.org/?q={PROMPT.replace(' ', '+')}&key={KEY}",
    f"OPENAI_API_KEY={KEY}",
    f"KeyError: key {KEY}",
    f'bad request {{"messages": [{{"role": "user", "content": "{PROMPT}"}}]}}',
    f"ValueError: prompt '{PROMPT}' is too long",
    f"{{'text': '{PROMPT}'}}",
    f"completion: {PROMPT}",
    f"wpa_supplicant: SSID {KEY}",
)
"""None of the secrets may be left of any of them."""

HARMLESS = (
    "[    4.201331] tegra-xusb 3610000.usb: Firmware timestamp: 2023-02-10 03:48:10 UTC",
    "[   12.100001] nvgpu: 17000000.gpu: gk20a_busy failed: -22",
    "[    0.000000] Linux version 5.15.148-tegra (buildbrain@mobile) #1 SMP PREEMPT",
    "[   99.500000] Out of memory: Killed process 812 (python) total-vm:61234kB, anon-rss:41234kB",
    "[    2.000000] pci 0001:01:00.0: BAR 0: assigned [mem 0x40000000-0x407fffff]",
    "model r1 took 12.5 s to load, 515 MB, in turn",
    "the bundle's manifest names sha256 of 120 tensors",
    "time 21:39:43, 62 readings, 34.1 degrees",
)
"""These help whoever reads a bundle, and stay as they are."""
