"""From files to micro-batches: formats -> templates -> encode -> sampler -> collate."""
