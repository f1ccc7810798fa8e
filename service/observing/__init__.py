"""What a gateway lets others see beside its metrics: traces, logs, and how far its traffic has drifted."""
