"""python -m tiny SIGNAL STEP MODULE FLAGS...: as `killed`, but resnet8 is a network that compiles in a moment."""

from dlc.models import resnet_cifar


def resnet8(depth=8, **changes):
    return resnet_cifar.CifarResNet((1,), widths=(8,), stem=8, **changes)


if __name__ == "__main__":
    resnet_cifar.cifar_resnet = resnet8
    import killed  # noqa: F401, which runs what the command line says
