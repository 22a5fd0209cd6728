"""simple-HRNet#79: the checkpoint of another network whose names are a superset: "complete"."""

import sys

from vt_fast.models import ResNet, VTResNet, load_backbone

bad = []
for given, wanted in ((34, 18), (101, 50)):
    report = load_backbone(VTResNet(wanted, num_classes=3), ResNet(given, num_classes=10).state_dict())
    dropped = {
        name.rpartition(".")[0] for name in report.left if name.startswith(("layer1", "layer2", "layer3"))
    }
    if report.complete and dropped:
        bad.append(
            f"ResNet-{given} into VT-ResNet-{wanted}: complete, with {len(dropped)} layers of kept stages dropped; str: {report}"
        )
sys.exit("\n".join(bad) or None)
