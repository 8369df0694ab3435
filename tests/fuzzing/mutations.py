"""All kinds of mutations by name."""

from fuzzing import byte_edits, folder_edits, pickle_edits, plain_edits, tensor_edits, zip_edits
from fuzzing.edit import Edit

MUTATIONS: dict[str, Edit] = {
    name: edit
    for module in (byte_edits, folder_edits, plain_edits, tensor_edits, pickle_edits, zip_edits)
    for name, edit in module.EDITS.items()
}
