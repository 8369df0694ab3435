"""What is imported once and is there in every worker."""

import os


def import_all() -> None:
    """Once for all workers; what a command would import late is there when it is forked."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch

    import probe.cli
    import probe.comparison.page
    import probe.language
    import probe.models.bridge
    import probe.pipeline
    import probe.report.write
    import probe.tracking.page
    import probe.transplant.page  # noqa: F401

    torch.set_num_threads(1)
