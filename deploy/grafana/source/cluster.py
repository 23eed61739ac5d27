"""The dashboard of workers, throughput and the time of each phase."""

from board import board, buckets, lines, number, timeline

MEAN = "rate(dico_step_seconds_sum{@}[$__rate_interval]) / rate(dico_step_seconds_count{@}[$__rate_interval])"


def step_quantile(q):
    return f"histogram_quantile({q}, sum by (instance, le) (rate(dico_step_seconds_bucket{{@}}[$__rate_interval])))"


def build():
    return board("cluster", "Cluster", "Workers of a run, their throughput, and the time of each phase of a step.", {
        "Now": [
            number("Workers", "Attached workers.", "none", "workers", "dico_members{@}", decimals=0),
            number("Needed", "The minimum of the run file: with fewer the run waits.", "none", "needed",
                   "dico_workers_wanted{@}", decimals=0),
            number("Images per second", "In the last step.", "none", "images/s", "dico_images_per_second{@}", decimals=1),
            number("Tokens per second", "In the last step.", "none", "tokens/s", "dico_tokens_per_second{@}", decimals=0),
            number("Step", "Mean over 5 minutes, on the slowest member.", "s", "step", "instance:dico_step_seconds:mean5m{@}"),
            number("Time in steps", "Share of the last 5 minutes spent in committed steps.", "percentunit",
                   "in steps", "instance:dico_goodput:ratio5m{@}", decimals=0),
        ],
        "Workers": [
            lines("Attached and needed", "With fewer workers than needed the run waits.", "none",
                  {"attached": "dico_members{@}", "needed": "dico_workers_wanted{@}"}, low=0),
            timeline("By worker", "Attached workers; only worker ids below 256.", {"{{rank}}": "dico_worker_up{@}"},
                     {0: ("away", "red"), 1: ("attached", "green")}),
        ],
        "Throughput": [
            lines("Images by worker", "Images per second in the last step.", "none",
                  {"{{rank}}": "dico_worker_images_per_second{@}"}, low=0, stacked=True),
            lines("Tokens by worker", "Tokens per second in the last step.", "none",
                  {"{{rank}}": "dico_worker_tokens_per_second{@}"}, low=0, stacked=True),
            lines("Against the last day", "Images per second within the stage. DicoThroughputDrop fires below the bound.",
                  "none", {
                      "10 minutes": "avg_over_time(stage:dico_images_per_second{@}[10m])",
                      "bound": "0.7 * avg_over_time(stage:dico_images_per_second{@}[1d])",
                  }, low=0),
        ],
        "Time per phase": [
            lines("Phases", "Mean over the members, in the last step.", "s", {"{{phase}}": "dico_phase_seconds{@}"}, low=0,
                  stacked=True),
            lines("All-reduce", "Longest time of a member in the last step's all-reduce.", "s",
                  {"all-reduce": "dico_all_reduce_seconds{@}"}, low=0),
            lines("Samples", "Samples per second in the last step, and committed per second of wall-clock time, which"
                  " includes evaluations, checkpoints and recoveries.", "none", {
                      "in steps": "dico_images_per_second{@}",
                      "committed": "instance:dico_samples_committed:rate5m{@}",
                  }, low=0),
        ],
        "Steps": [
            buckets("Step time", "Steps by duration, on the slowest member.", "s",
                    "sum by (le) (increase(dico_step_seconds_bucket{@}[$__rate_interval]))"),
            lines("Quantiles", "Quantiles of the step time.", "s",
                  {"50%": step_quantile(0.5), "95%": step_quantile(0.95), "99%": step_quantile(0.99), "mean": MEAN}, low=0),
        ],
        "Stragglers": [
            lines("Lag", "Seconds that the slowest worker computes longer than the others. DicoStraggler fires above the bound.",
                  "s", {"lag": "dico_lag_seconds{@}", "bound": "0.25 * instance:dico_step_seconds:mean5m{@}"}, low=0),
            lines("Slowest worker", "Id of the worker that the others waited for in the last step.", "none", {"worker": "dico_slowest_rank{@}"},
                  low=0),
        ],
    })
