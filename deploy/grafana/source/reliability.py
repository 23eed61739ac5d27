"""What broke, what it cost, and what would be lost now."""

from board import board, lines, number, timeline

STATES = ["waiting", "forming", "running", "paused", "finished", "failed"]


def recovery_quantile(q):
    return f"histogram_quantile({q}, dico_recovery_seconds_bucket{{@}})"


def build():
    return board("reliability", "Reliability", "Faults of a run, what they cost, and what would be lost now.", {
        "Now": [
            number("Last step", "Age of the last applied step.", "s", "age",
                   "time() - dico_last_step_timestamp_seconds{@}", limits=[300, 900], decimals=0),
            number("Last checkpoint", "Age: as much is lost if all workers end now.", "s", "age",
                   "time() - dico_last_checkpoint_timestamp_seconds{@}", limits=[3600, 7200], decimals=0),
            number("Generation", "Each set of workers that trained together has a number.", "none", "generation",
                   "dico_generation{@}", decimals=0),
            number("Workers lost", "Since the coordinator was started.", "none", "lost", "dico_workers_lost_total{@}",
                   decimals=0),
            number("Recoveries", "Generations that took over from one that broke, since the coordinator was started.",
                   "none", "recoveries", "dico_recoveries_total{@}", decimals=0),
            number("Version", "Of the coordinator.", "none", "{{version}}", "dico_build_info{@}", name=True),
        ],
        "The run": [
            timeline("State", "What the run was doing when.", {
                state: f'dico_run_state{{@, state="{state}"}}' for state in STATES
            }, {0: ("", "transparent"), 1: ("yes", "blue")}),
            timeline("Alerts", "Of this run, once they are pending.",
                     {"{{alertname}} {{alertstate}}": 'ALERTS{@, alertname=~"Dico.*"}'}, {1: ("yes", "red")}),
            timeline("Reached", "Whether Prometheus reached the coordinator.", {"{{instance}}": 'up{job="dico", @}'},
                     {0: ("no", "red"), 1: ("yes", "green")}),
        ],
        "Workers": [
            lines("Attached and needed", "Below what is needed the run waits.", "none",
                  {"attached": "dico_members{@}", "needed": "dico_workers_wanted{@}"}, low=0),
            lines("Faults", "Since the coordinator was started.", "none", {
                "workers lost": "dico_workers_lost_total{@}",
                "recoveries": "dico_recoveries_total{@}",
                "generations": "dico_generation{@}",
            }, low=0),
            lines("Recovery", "From a fault to the next applied step, of all since the coordinator was started.", "s", {
                "50%": recovery_quantile(0.5),
                "95%": recovery_quantile(0.95),
                "mean": "dico_recovery_seconds_sum{@} / dico_recovery_seconds_count{@}",
            }, low=0),
        ],
        "What counts": [
            lines("Samples", "That training has consumed for good.", "none", {"samples": "dico_samples_committed_total{@}"},
                  low=0),
            lines("Time in steps", "Share of the last 5 minutes that went into steps which count.", "percentunit",
                  {"in steps": "instance:dico_goodput:ratio5m{@}"}, low=0, high=1),
        ],
        "Checkpoints": [
            lines("Age", "Of the last checkpoint.", "s", {"age": "time() - dico_last_checkpoint_timestamp_seconds{@}"}, low=0,
                  limits=[3600, 7200]),
            lines("Written", "Since the coordinator was started.", "none", {"checkpoints": "dico_checkpoints_total{@}"}, low=0),
        ],
        "Disks": [
            lines("Free", "Share of the disk. DicoDiskNearlyFull fires below 5 %.", "percentunit",
                  {"{{what}}": "instance:dico_disk_free:ratio{@}"}, low=0, high=1),
            lines("Free and size", "Of the disks with the journal and with the checkpoints.", "bytes", {
                "{{what}}, free": "dico_disk_free_bytes{@}",
                "{{what}}, size": "dico_disk_size_bytes{@}",
            }, low=0),
        ],
        "Guard and refusals": [
            lines("Guard", "How often bounds of the run file were broken.", "none",
                  {"{{metric}}: {{action}}": "dico_guard_events_total{@}"}, low=0),
            lines("Refusals", "Connections, calls and sessions a minute that were refused; docs/security.md names the reasons.",
                  "none", {"{{reason}}": "60 * rate(dico_refusals_total{@}[$__rate_interval])"}, low=0),
        ],
    })
