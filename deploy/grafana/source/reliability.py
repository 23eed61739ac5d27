"""The dashboard of failures, their cost, checkpoints and disks."""

from board import board, lines, number, timeline

STATES = ["waiting", "forming", "running", "paused", "finished", "failed"]


def recovery_quantile(q):
    return f"histogram_quantile({q}, dico_recovery_seconds_bucket{{@}})"


def build():
    return board("reliability", "Reliability", "Failures of a run, their cost, and the age of its checkpoints.", {
        "Now": [
            number("Last step", "Age of the last applied step.", "s", "age",
                   "time() - dico_last_step_timestamp_seconds{@}", limits=[300, 900], decimals=0),
            number("Last checkpoint", "Age: the training time lost if all workers fail now.", "s", "age",
                   "time() - dico_last_checkpoint_timestamp_seconds{@}", limits=[3600, 7200], decimals=0),
            number("Generation", "Number of the present set of workers that train together.", "none", "generation",
                   "dico_generation{@}", decimals=0),
            number("Failed workers", "Since the coordinator started; evicted workers included.", "none", "lost", "dico_workers_lost_total{@}",
                   decimals=0),
            number("Recoveries", "Generations that replaced a failed one, since the coordinator started.",
                   "none", "recoveries", "dico_recoveries_total{@}", decimals=0),
            number("Version", "Version of the coordinator.", "none", "{{version}}", "dico_build_info{@}", name=True),
        ],
        "The run": [
            timeline("State", "State of the run over time.", {
                state: f'dico_run_state{{@, state="{state}"}}' for state in STATES
            }, {0: ("", "transparent"), 1: ("yes", "blue")}),
            timeline("Alerts", "Pending and firing alerts of this run.",
                     {"{{alertname}} {{alertstate}}": 'ALERTS{@, alertname=~"Dico.*"}'}, {1: ("yes", "red")}),
            timeline("Scrapes", "Whether Prometheus reached the coordinator.", {"{{instance}}": 'up{job="dico", @}'},
                     {0: ("no", "red"), 1: ("yes", "green")}),
        ],
        "Workers": [
            lines("Attached and needed", "With fewer workers than needed the run waits.", "none",
                  {"attached": "dico_members{@}", "needed": "dico_workers_wanted{@}"}, low=0),
            lines("Failures", "Since the coordinator started.", "none", {
                "failed workers": "dico_workers_lost_total{@}",
                "recoveries": "dico_recoveries_total{@}",
                "generations": "dico_generation{@}",
            }, low=0),
            lines("Recovery", "Seconds from a failure to the next applied step, since the coordinator started.", "s", {
                "50%": recovery_quantile(0.5),
                "95%": recovery_quantile(0.95),
                "mean": "dico_recovery_seconds_sum{@} / dico_recovery_seconds_count{@}",
            }, low=0),
        ],
        "Progress": [
            lines("Samples", "Samples of committed steps.", "none", {"samples": "dico_samples_committed_total{@}"},
                  low=0),
            lines("Time in steps", "Share of the last 5 minutes spent in committed steps.", "percentunit",
                  {"in steps": "instance:dico_goodput:ratio5m{@}"}, low=0, high=1),
        ],
        "Checkpoints": [
            lines("Age", "Age of the last checkpoint.", "s", {"age": "time() - dico_last_checkpoint_timestamp_seconds{@}"}, low=0,
                  limits=[3600, 7200]),
            lines("Written", "Since the coordinator started.", "none", {"checkpoints": "dico_checkpoints_total{@}"}, low=0),
        ],
        "Disks": [
            lines("Free", "Free share of the disk. DicoDiskNearlyFull fires below 5 %.", "percentunit",
                  {"{{what}}": "instance:dico_disk_free:ratio{@}"}, low=0, high=1),
            lines("Free and size", "The disks of the journal and of the checkpoints.", "bytes", {
                "{{what}}, free": "dico_disk_free_bytes{@}",
                "{{what}}, size": "dico_disk_size_bytes{@}",
            }, low=0),
        ],
        "Guard and refusals": [
            lines("Guard", "Number of times that a guard rule of the run file triggered.", "none",
                  {"{{metric}}: {{action}}": "dico_guard_events_total{@}"}, low=0),
            lines("Refusals", "Refused connections, calls and sessions per minute; docs/security.md explains the reasons.",
                  "none", {"{{reason}}": "60 * rate(dico_refusals_total{@}[$__rate_interval])"}, low=0),
        ],
    })
