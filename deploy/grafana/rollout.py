"""The dashboard Rollout: what a rollout gives to whom, and what the evidence says."""

from __future__ import annotations

from deploy.grafana.board import Board, Limits, M, Panel, Query, quantile, rate, share

ROLLOUT = Board(
    "mipgate-rollout",
    "Mipgate: Rollout",
    "What a rollout gives to whom, what the evidence says, and what became of it.",
    (
        Panel(
            "names",
            "Phase",
            "The phase of each model's newest rollout.",
            "none",
            (Query(f"max by (model, phase) (mipgate_rollout_phase{{{M}}}) == 1", "{{model}}: {{phase}}"),),
            scripted=True,
        ),
        Panel(
            "stack",
            "Weights",
            "Share of the traffic that a rollout gives to each arm.",
            "percentunit",
            (Query(f"max by (model, arm) (mipgate_rollout_weight{{{M}}})", "{{model}} {{arm}}"),),
            scripted=True,
        ),
        Panel(
            "stack",
            "Traffic by arm",
            "Requests per second that each arm got; compare it with the weights.",
            "reqps",
            (Query(rate(f'mipgate_requests_total{{{M}, arm!=""}}', "model, arm"), "{{model}} {{arm}}"),),
            scripted=True,
        ),
        Panel(
            "lines",
            "Evidence",
            "Each guard's statistic: its estimate between confidence bounds, and the threshold that it "
            "must keep.",
            "none",
            (
                Query(
                    f"max by (model, arm, statistic, bound) (mipgate_rollout_guard{{{M}}})",
                    "{{model}} {{arm}} {{statistic}}: {{bound}}",
                ),
            ),
            width=12,
            scripted=True,
        ),
        Panel(
            "lines",
            "Samples",
            "Observations behind each guard's estimate.",
            "none",
            (
                Query(
                    f"max by (model, arm, statistic) (mipgate_rollout_guard_samples{{{M}}})",
                    "{{model}} {{arm}} {{statistic}}",
                ),
            ),
            width=6,
            scripted=True,
        ),
        Panel(
            "lines",
            "Guards breached",
            "How often candidates broke a guard, over the time that is shown.",
            "none",
            (
                Query(
                    "sum by (model, arm, statistic) "
                    f"(increase(mipgate_rollout_guard_breaches_total{{{M}}}[$__range]))",
                    "{{model}} {{arm}} {{statistic}}",
                ),
            ),
            Limits(1, 1),
            6,
            scripted=True,
        ),
        Panel(
            "lines",
            "Latency by arm",
            "Time from arrival to answer, 99th percentile.",
            "s",
            (
                Query(
                    quantile(0.99, "mipgate_request_duration_seconds", "model, arm", f'{M}, arm!=""'),
                    "{{model}} {{arm}} p99",
                ),
            ),
            Limits(0.1, 0.5),
            scripted=True,
        ),
        Panel(
            "lines",
            "Errors by arm",
            "Share of each arm's requests that were rejected, late or failed.",
            "percentunit",
            (
                Query(
                    share(
                        f'mipgate_requests_total{{{M}, arm!="", outcome=~"rejected|late|failed"}}',
                        f'mipgate_requests_total{{{M}, arm!="", outcome!="client_error"}}',
                        "model, arm",
                    ),
                    "{{model}} {{arm}}",
                ),
            ),
            Limits(0.001, 0.005),
            scripted=True,
        ),
        Panel(
            "lines",
            "Quality by arm",
            "Share of each arm's answers that delayed labels confirm.",
            "percentunit",
            (
                Query(
                    share(
                        f'mipgate_feedback_total{{{M}, correct="true", arm!=""}}',
                        f'mipgate_feedback_total{{{M}, arm!=""}}',
                        "model, arm",
                    ),
                    "{{model}} {{arm}}",
                ),
            ),
            Limits(0.97, 0.9, less_is_worse=True),
            scripted=True,
        ),
        Panel(
            "lines",
            "Agreement in the shadow",
            "Share of a shadow's answers that agree with those that were given.",
            "percentunit",
            (
                Query(
                    share(
                        f'mipgate_shadow_comparisons_total{{{M}, agree="true"}}',
                        f"mipgate_shadow_comparisons_total{{{M}}}",
                        "model, variant",
                    ),
                    "{{model}}/{{variant}}",
                ),
            ),
            Limits(0.99, 0.97, less_is_worse=True),
            scripted=True,
        ),
        Panel(
            "bars",
            "Transitions",
            "Phases that rollouts entered over the time that is shown.",
            "none",
            (
                Query(
                    f"sum by (model, phase) (increase(mipgate_rollout_transitions_total{{{M}}}[$__range]))",
                    "{{model}}: {{phase}}",
                ),
            ),
            scripted=True,
        ),
        Panel(
            "lines",
            "State database",
            "1 while the state database answers; else rollouts make no step.",
            "none",
            (Query("min by (instance, database) (mipgate_state_up)", "{{instance}} {{database}}"),),
            Limits(None, 1, less_is_worse=True),
            scripted=True,
        ),
    ),
)
