"""The dictionary of the encoding ``zstd-ek1``: what batches of the first release have in common.

It is frozen. Another list of names is another dictionary with another encoding's name, since both
sides must have the same bytes: the sha256 is in ``docs/telemetry.md``.
"""

from __future__ import annotations

_ZONES = ("cpu", "gpu", "tj", "soc0", "soc1", "soc2", "cv0", "cv1", "cv2", "tboard_tegra", "tdiode")
_NAMES = (
    "probe_loss_lower_bound_ratio", "probe_lost_total", "probe_refused_total", "probe_sent_total",
    "probe_unsent_total", "modem_rsrp_dbm.nr5g", "modem_rsrq_db.nr5g", "modem_snr_db.nr5g",
    "modem_rsrp_dbm.lte", "modem_rsrq_db.lte", "modem_snr_db.lte", "modem_signal_percent",
    "sensor_errors_total.", "ring_dropped_total.age", "ring_dropped_total.full",
    "ring_dropped_total.broken", "ring_file_bytes", "ring_rows", "storage_life_used_ratio.mmcblk0",
    "storage_temperature_celsius.nvme0", "over_current_events_total", "throttling_alerts",
    "cpu_clock_pinned", "gpu_clock_pinned", "power_mode_id", "swap_total_bytes", "swap_used_bytes",
    "memory_total_bytes", "memory_largest_free_block_bytes", "disk_free_bytes./",
    "disk_used_ratio./", "disk_read_bytes_total.mmcblk0", "disk_read_bytes_total.nvme0n1",
    "disk_written_bytes_total.mmcblk0", "disk_written_bytes_total.nvme0n1",
    "link_received_bytes_total.mqtt", "link_rtt_ms.mqtt", "link_segments_retransmitted_total.mqtt",
    "link_segments_sent_total.mqtt", "link_sent_bytes_total.mqtt", "cpu_mhz.policy0",
    "cpu_mhz.policy4", "cpu_mhz.policy8", "emc_load_percent", "emc_mhz",
    "engine_memory_budget_bytes", "engine_memory_bytes", "engine_memory_used_ratio",
    "generated_tokens_total", "prompt_tokens_total", "requests_failed_total", "requests_running",
    "requests_total", "requests_waiting", "tcp_segments_retransmitted_total",
    "tcp_segments_sent_total", "udp_datagrams_sent_total", "memory_available_bytes",
    "memory_used_ratio", "cpu_load_percent", "gpu_load_percent", "gpu_mhz", "uptime_s",
    *(f"temperature_celsius.{zone}" for zone in _ZONES),
    "power_mw.VDDQ_VDD2_1V8AO", "power_mw.VDD_CPU_CV", "power_mw.VDD_GPU_SOC",
    "power_mw.VIN_SYS_5V0",
)  # fmt: skip

DICTIONARY = (
    '],"lists":{"schema_version":1,"seq":[[,"times_ms":[17,10000,10000,10000,10000,10000,'
    "0,0,0,0,0,0,0,0,0,0,0,0,null,null,null,null,null,null,"
    + "".join(f'],"{name}":[0,' for name in _NAMES)
    + '{"boot":"","clock":"synced","constants":{'
).encode()
