"""Augmentations are functions of their key that move, cover and mix pixels as their papers say, and invent none."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlc import augment, train, views
from dlc.batches import minibatches
from dlc.errors import UserError
from dlc.models.airbench import whitening
from dlc.prepare import channel_mean_and_std, color_components, mean_and_std, mean_image, standardise

KEY = jax.random.key(0)


MOVES = {
    "flip": augment.flip,
    "alternating_flip": lambda key, images: augment.alternating_flip(key, images, jnp.arange(len(images)), 0),
    "translate": functools.partial(augment.translate, pixels=2),
    "translate, zeros": functools.partial(augment.translate, pixels=2, mode="constant"),
    "crop": functools.partial(augment.crop, size=(5, 7)),
    "cutout": functools.partial(augment.cutout, size=4),
}
JITTER = {"color_jitter": functools.partial(augment.color_jitter, brightness=0.3, contrast=0.4, saturation=0.5)}
NOTHING = {
    "translate": functools.partial(augment.translate, pixels=0),
    "translate, zeros": functools.partial(augment.translate, pixels=0, mode="constant"),
    "crop": functools.partial(augment.crop, size=(8, 9)),
    "cutout": functools.partial(augment.cutout, size=0),
    "mixup": lambda key, images: augment.mixup(key, {"image": images, "label": np.arange(6)}, 0.0, 6)["image"],
    "cutmix": lambda key, images: augment.cutmix(key, {"image": images, "label": np.arange(6)}, 0.0, 6)["image"],
    "color_jitter": augment.color_jitter,
}


def pictures(count=6, size=(8, 9), channels=3, dtype=np.float32):
    return np.random.default_rng(0).integers(1, 256, (count, *size, channels)).astype(dtype)


def places(count, H, W):
    """Images whose every pixel is a number of its own, the same in all."""
    return np.broadcast_to(np.arange(1, H * W + 1, dtype=np.int32).reshape(1, H, W, 1), (count, H, W, 1))


def assert_even(counts, ways):
    """All `ways` occurred, each about as often: chi-square within five deviations."""
    counts = np.asarray(counts)
    assert len(counts) == ways
    expected = counts.sum() / ways
    assert abs(((counts - expected) ** 2).sum() / expected - (ways - 1)) < 5 * np.sqrt(2 * (ways - 1)) + 1


@pytest.mark.parametrize("name", [name for name in MOVES | JITTER if name != "translate, zeros"])
def test_a_function_of_its_key(name):
    """The same key gives the same result, another key another one; vmap over keys equals each key separately."""
    augmentation, images = (MOVES | JITTER)[name], pictures()
    keys = jax.random.split(KEY)[np.array([0, 1, 0])]
    first, other, again = np.asarray(jax.jit(jax.vmap(augmentation, (0, None)))(keys, images))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(jax.jit(augmentation)(keys[0], images), first, rtol=1e-5)


@pytest.mark.parametrize("name", MOVES | JITTER)
def test_dtypes_are_kept(name):
    for dtype in (jnp.bfloat16, np.float32) if name in JITTER else (np.uint8, jnp.bfloat16, np.float32):
        out = jax.eval_shape((MOVES | JITTER)[name], KEY, jax.ShapeDtypeStruct((4, 8, 9, 3), dtype))
        assert out.dtype == dtype
        assert out.shape == ((4, 5, 7, 3) if name == "crop" else (4, 8, 9, 3))


@pytest.mark.parametrize("name", NOTHING)
def test_at_no_strength_nothing_happens(name):
    np.testing.assert_array_equal(jax.jit(NOTHING[name])(KEY, pictures()), pictures())


def test_chained_functions_follow_each_other_with_keys_of_their_own():
    def noise(key, images):
        return images + jax.random.uniform(key, images.shape)

    double = augment.of_images(lambda key, images: 2 * images)
    chain = augment.chained(augment.of_images(noise), double, augment.of_images(noise))
    out = chain(KEY, {"image": jnp.zeros((1, 2, 2, 1)), "label": 7})
    first, last = (jax.random.uniform(jax.random.fold_in(KEY, i), (1, 2, 2, 1)) for i in (0, 2))
    np.testing.assert_allclose(out["image"], 2 * first + last, rtol=1e-6)
    assert out["label"] == 7


# Flips


def test_a_flip_is_a_fair_coin_for_each_image():
    images = pictures(2000, (1, 2), 1)
    images[:, :, 1] = images[:, :, 0] + 1
    out = np.asarray(jax.jit(augment.flip)(KEY, images))
    flipped = (out[:, 0, 0] > out[:, 0, 1]).ravel()
    np.testing.assert_array_equal(out, np.where(flipped[:, None, None, None], images[:, :, ::-1], images))
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)


def sides(key, rows, epoch):
    """Whether each of these rows is flipped in that epoch."""
    image = np.broadcast_to(np.array([0, 1], np.uint8).reshape(1, 1, 2, 1), (len(rows), 1, 2, 1))
    return np.asarray(jax.jit(augment.alternating_flip)(key, image, rows, epoch)[:, 0, 0, 0]).astype(bool)


def test_alternating_flips_show_both_sides_in_any_two_epochs():
    rows = np.arange(2000)
    epochs = [sides(KEY, rows, epoch) for epoch in range(4)]
    for before, after in itertools.pairwise(epochs):
        np.testing.assert_array_equal(before, ~after)
    assert abs(epochs[0].mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)
    agreement = (epochs[0] == sides(jax.random.key(1), rows, 0)).mean()
    assert abs(agreement - 0.5) < 5 * 0.5 / np.sqrt(2000)


def test_an_alternating_flip_belongs_to_its_row():
    rows = np.random.default_rng(0).permutation(2000)
    np.testing.assert_array_equal(sides(KEY, rows, 1), sides(KEY, np.arange(2000), 1)[rows])


def test_alternating_turns_every_image_from_epoch_to_epoch():
    images = pictures(6)

    def seen(state, batch):
        return state._replace(step=state.step + 1), {"loss": batch["image"]}

    step = train.on_device(augment.alternating(seen, 3), {"image": images, "row": np.arange(6)})
    state = train.State(jnp.zeros((), jnp.int32), None, None, None, KEY)
    batches = np.stack([minibatches(6, 2)(first, 3) for first in (0, 3)])
    state, metrics = train.compiled(train.scanned(train.scanned(step)), donate=False)(state, batches)
    first, second = metrics["loss"].reshape(2, 6, 8, 9, 3)
    np.testing.assert_array_equal(second, first[:, :, ::-1])
    np.testing.assert_array_equal(first, augment.alternating_flip(KEY, images, np.arange(6), 0))
    two = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), state._replace(key=None))._replace(key=train.seed_keys(0, 2))
    _, metrics = train.compiled(train.over_seeds(step), donate=False)(two, np.arange(6))
    np.testing.assert_array_equal(metrics["loss"][0], first)
    assert not np.array_equal(metrics["loss"][1], first)


# Moves


@pytest.mark.parametrize(("mode", "pixels"), [("reflect", 4), ("constant", 2)])
def test_translate_cuts_windows_out_of_the_padded_image(mode, pixels):
    count, H, W = 4000, 6, 7
    images = places(count, H, W)
    out = np.asarray(jax.jit(functools.partial(augment.translate, pixels=pixels, mode=mode))(KEY, images))
    padded = np.pad(images[0, :, :, 0], pixels, mode=mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (H, W)).reshape(-1, H, W)
    which = (out[:, None, :, :, 0] == windows).all((2, 3))
    np.testing.assert_array_equal(which.sum(1), 1)
    assert_even(which.sum(0), (2 * pixels + 1) ** 2)


def test_crops_are_windows_and_all_places_alike():
    images = places(2000, 5, 7)
    out = np.asarray(jax.jit(functools.partial(augment.crop, size=(3, 4)))(KEY, images))
    windows = np.lib.stride_tricks.sliding_window_view(images[0, :, :, 0], (3, 4)).reshape(-1, 3, 4)
    which = (out[:, None, :, :, 0] == windows).all((2, 3))
    np.testing.assert_array_equal(which.sum(1), 1)
    assert_even(which.sum(0), 3 * 4)


# Cutout, mixup, cutmix


def boxes(H, W, h, w):
    """The masks of boxes of h x w centred on each pixel, clipped at the edges."""
    masks = np.zeros((H * W, H, W), bool)
    for mask, (y, x) in zip(masks, np.ndindex(H, W), strict=True):
        mask[max(0, y - h // 2) : y - h // 2 + h, max(0, x - w // 2) : x - w // 2 + w] = True
    return masks


def test_cutout_clips_a_square_around_any_pixel():
    images = places(4000, 6, 7)
    out = np.asarray(jax.jit(functools.partial(augment.cutout, size=3))(KEY, images))
    covered = out[..., 0] == 0
    np.testing.assert_array_equal(out[..., 0][~covered], images[..., 0][~covered])
    which = (covered[:, None] == boxes(6, 7, 3, 3)).all((2, 3))
    np.testing.assert_array_equal(which.sum(1), 1)
    assert_even(which.sum(0), 6 * 7)


B, H, W, DRAWS = 8, 6, 7, 1000
ALPHA = {augment.mixup: 0.2, augment.cutmix: 1.0}

both = pytest.mark.parametrize("mix", ALPHA)


def numbered(dtype=np.float32):
    """Images that are all of their own number, and of a class of their own."""
    number = np.arange(B)
    return {"image": np.broadcast_to(number.reshape(B, 1, 1, 1), (B, H, W, 1)).astype(dtype), "label": number}


@functools.cache
def draws(mix):
    """What becomes of these images with many keys, of which the last is the first again."""
    keys = jax.random.split(KEY, DRAWS)[np.r_[: DRAWS - 1, 0]]
    one = functools.partial(mix, batch={**numbered(), "row": np.arange(B)}, alpha=ALPHA[mix], classes=B)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))


@both
def test_labels_are_mixed_as_the_images_are(mix):
    out = draws(mix)
    assert out["label"].dtype == out["image"].dtype == np.float32
    np.testing.assert_allclose(out["image"].mean((2, 3, 4)), out["label"] @ np.arange(B), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out["label"].sum(1), 1, rtol=1e-5)  # a permutation: each image is used once
    np.testing.assert_allclose(out["label"].sum(2), 1, rtol=1e-5)
    np.testing.assert_array_equal(out["row"], np.broadcast_to(np.arange(B), (DRAWS, B)))


@both
def test_mixtures_are_functions_of_the_key(mix):
    out = draws(mix)
    for value in (out["image"], out["label"]):
        np.testing.assert_array_equal(value[0], value[-1])
        assert len(np.unique(value.reshape(DRAWS, -1), axis=0)) > DRAWS / 2


@both
def test_bytes_are_rounded_and_labels_may_be_distributions_already(mix):
    batch = {"image": numbered(np.uint8)["image"], "label": np.eye(B)}
    one = jax.jit(functools.partial(mix, alpha=ALPHA[mix], classes=B))(jax.random.split(KEY, DRAWS)[0], batch)
    assert one["image"].dtype == np.uint8
    np.testing.assert_allclose(one["image"], draws(mix)["image"][0], atol=0.501)
    np.testing.assert_allclose(one["label"], draws(mix)["label"][0], atol=1e-6)


def partners(mix):
    """The partner's weight in the first image's label, where the partner is another image."""
    share = 1 - draws(mix)["label"][:, 0, 0]
    return share[draws(mix)["label"][:, 0, 0] < 1]


def test_mixups_weight_has_the_beta_distribution():
    share = partners(augment.mixup)
    np.testing.assert_allclose(share.mean(), 0.5, atol=0.08)
    np.testing.assert_allclose(share.var(), 1 / (4 * (2 * 0.2 + 1)), rtol=0.15)


def test_cutmix_fills_one_box_and_counts_its_pixels():
    out = draws(augment.cutmix)
    changed = (out["image"] != numbered()["image"])[..., 0]
    box = changed.any(1)
    np.testing.assert_array_equal(box, box.any(2)[:, :, None] & box.any(1)[:, None])
    own = out["label"][:, np.arange(B), np.arange(B)]
    covered = changed.sum((2, 3))
    assert ((covered == 0) | (covered == box.sum((1, 2))[:, None])).all()  # 0 for an image that is its own partner
    np.testing.assert_allclose(1 - own, covered / (H * W), atol=1e-6)


def test_cutmixs_boxes_are_as_large_as_the_papers():
    """With m uniform: the mean over m and over all centres, some of the box outside."""
    sides = np.sqrt((np.arange(500) + 0.5) / 500)
    shares = [boxes(H, W, int(side * H), int(side * W)).mean() for side in sides]
    box = (draws(augment.cutmix)["image"] != numbered()["image"])[..., 0].any(1)
    np.testing.assert_allclose(box.mean(), np.mean(shares), atol=5 * np.std(shares) / np.sqrt(DRAWS) + 0.02)


# Colours


def jitter(**strength):
    images = pictures(500, (4, 5)) / 256
    return images, np.asarray(jax.jit(functools.partial(augment.color_jitter, **strength))(KEY, images))


def spread(factors, strength):
    assert np.abs(factors - 1).max() <= strength + 1e-3
    np.testing.assert_allclose(
        (factors.mean(), factors.std()), (1, strength / np.sqrt(3)), atol=5 * strength / 500**0.5
    )


def test_brightness_multiplies():
    images, out = jitter(brightness=0.4)
    factors = (out / images).reshape(500, -1)
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1], factors.shape), rtol=1e-5)
    spread(factors[:, 0], 0.4)


def test_contrast_leaves_the_mean_grey():
    images, out = jitter(contrast=0.4)
    mean = (images @ np.array(augment.LUMA)).mean((1, 2))[:, None, None, None]
    np.testing.assert_allclose((out @ np.array(augment.LUMA)).mean((1, 2)), mean.ravel(), rtol=1e-5)
    factors = ((out - mean) * (images - mean)).sum((1, 2, 3)) / ((images - mean) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(out - mean, factors.reshape(-1, 1, 1, 1) * (images - mean), atol=1e-5)
    spread(factors, 0.4)


def test_saturation_leaves_the_grey_of_every_pixel():
    images, out = jitter(saturation=0.4)
    grey = (images @ np.array(augment.LUMA))[..., None]
    np.testing.assert_allclose((out @ np.array(augment.LUMA))[..., None], grey, rtol=1e-4)
    factors = ((out - grey) * (images - grey)).sum((1, 2, 3)) / ((images - grey) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(out - grey, factors.reshape(-1, 1, 1, 1) * (images - grey), atol=1e-5)
    spread(factors, 0.4)


def test_grey_images_have_no_saturation_to_change():
    for images in (pictures(channels=1), np.repeat(pictures(channels=1), 3, axis=-1)):
        changed = jax.jit(functools.partial(augment.color_jitter, saturation=0.9))(KEY, images)
        np.testing.assert_allclose(changed, images, rtol=1e-5)


# Statistics


def test_channel_statistics_and_mean_image_are_numpys():
    images = pictures(50, (6, 5), dtype=np.uint8)
    mean, std = channel_mean_and_std(images)
    assert mean.dtype == std.dtype == mean_image(images).dtype == np.float32
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(mean_image(images), (images / 255).mean(0), rtol=1e-6)
    np.testing.assert_allclose(mean_and_std(images), ((images / 255).mean(), (images / 255).std()), rtol=1e-9)


def test_images_are_standardised_by_channel_or_by_place():
    images = pictures(50, (6, 5), dtype=np.uint8)
    out = np.asarray(jax.jit(standardise(*channel_mean_and_std(images)))(images))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)
    out = np.asarray(jax.jit(standardise(mean_image(images)))(images))
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(out.std(), (images / 255 - (images / 255).mean(0)).std(), rtol=1e-5)


# Whitening


def smooth():
    """Images whose neighbouring pixels, and channels, are alike, as in photographs."""
    noise = np.random.default_rng(0).standard_normal((40, 13, 12, 3)).astype(np.float32)
    images = noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + 0.5
    return images @ np.array([[1, 0.9, 0.8], [0, 0.3, 0.2], [0, 0, 0.1]], np.float32)


def test_whitened_patches_have_the_identity_for_covariance():
    images, size, eps, D = smooth(), 2, 5e-4, 2 * 2 * 3
    kernel = jax.jit(functools.partial(whitening, size=size, eps=eps))(images)
    chex.assert_shape(kernel, (size, size, 3, 2 * D))
    np.testing.assert_array_equal(kernel[..., D:], -kernel[..., :D])
    kernel = np.asarray(kernel)
    responses = jax.lax.conv_general_dilated(
        images, kernel[..., :D], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    responses = np.reshape(responses, (-1, D))
    covariance = responses.T @ responses / len(responses)
    # The length of a filter is 1 / sqrt(l + eps), so that its responses have mean square l / (l + eps).
    expected = 1 - eps * np.square(kernel[..., :D]).sum((0, 1, 2))
    np.testing.assert_allclose(covariance, np.diag(expected), atol=5e-3)
    assert (np.diff(expected) <= 1e-3).all()  # the strongest direction first
    assert expected[0] > 0.999


# Views


@jax.jit
def forward(images):
    """Something that is neither linear nor blind to position."""
    x = jnp.asarray(images, jnp.float32) / 256
    weight = jnp.sin(jnp.arange(x[0].size * 2, dtype=jnp.float32)).reshape(-1, 2)
    return jnp.tanh(x.reshape(len(x), -1) @ weight)


def test_views_are_the_mean_of_one_two_and_six_forward_passes():
    images = pictures()
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    weights = {(1, 1): 1 / 2, (0, 0): 1 / 4, (2, 2): 1 / 4}
    corners = {(y, x): padded[:, y : y + 8, x : x + 9] for y, x in weights}
    mirrored = {at: (forward(view) + forward(view[:, :, ::-1])) / 2 for at, view in corners.items()}
    six = sum(weight * mirrored[at] for at, weight in weights.items())
    for level, expected in enumerate((forward(images), mirrored[1, 1], six)):
        seen = jax.jit(functools.partial(views.views, forward, level=level))(images)
        np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-6)


def test_from_level_1_on_an_image_and_its_mirror_image_look_the_same():
    assert not np.allclose(forward(pictures()), forward(pictures()[:, :, ::-1]))
    for images in (pictures(), pictures()[:, :, ::-1]):
        np.testing.assert_allclose(
            views.views(forward, images, level=1), views.mirrored(forward)(pictures()), rtol=1e-4, atol=1e-6
        )


# Mistakes

MISTAKES = {
    "a crop of 40x40 is larger than its image of 32x32": lambda x: augment.crop(KEY, x, (40, 40)),
    "a crop of 8x33 is larger than its image of 32x32": lambda x: augment.crop(KEY, x, (8, 33)),
    "a square of 33x33 is larger than its image of 32x32": lambda x: augment.cutout(KEY, x, 33),
    "an image of 32x32 cannot be shifted by 32 pixels: choose fewer": lambda x: augment.translate(KEY, x, 32),
    "images with 4 channels cannot be colour-jittered: pass grey or RGB images": lambda x: augment.color_jitter(
        KEY, jnp.concatenate([x, x[..., :1]], -1)
    ),
    'alternating flips need the rows of their images: add "row": np.arange(N) to the arrays': lambda x: (
        augment.alternating(lambda state, batch: (state, {}), 1)(train.State(0, None, None, None, KEY), {"image": x})
    ),
    "a patch of 33x33 is larger than its image of 32x32": lambda x: whitening(x, 33),
    "the level of test-time views must be 0, 1 or 2, not 3": lambda x: views.views(forward, x, 3),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_are_named(sentence):
    with pytest.raises(UserError) as error:
        MISTAKES[sentence](jnp.zeros((2, 32, 32, 3)))
    assert str(error.value) == sentence


def test_color_noise_goes_along_the_principal_components():
    draw = np.random.default_rng(0)
    light = draw.normal(128, 30, (4000, 1))
    pixels = (light + draw.normal(0, 4, (4000, 3))).clip(0, 255).astype(np.uint8)
    components = color_components(pixels)
    lengths = np.linalg.norm(components, axis=1)
    np.testing.assert_allclose(abs(components[0]) / lengths[0], np.full(3, 3**-0.5), atol=0.02)
    np.testing.assert_allclose(lengths.sum(), np.trace(np.cov(pixels.T / 255.0)), rtol=1e-5)
    images = np.zeros((2000, 2, 2, 3), np.float32)
    noise = jax.jit(augment.color_noise, static_argnums=3)
    noisy = np.asarray(noise(jax.random.key(0), images, components, 0.1))
    assert (noisy == noisy[:, :1, :1]).all()  # one draw an image
    covariance = np.cov(noisy[:, 0, 0].T)
    np.testing.assert_allclose(covariance, 0.01 * components.T @ components, atol=0.1 * covariance.max())
    assert not np.any(noise(jax.random.key(0), images, components, 0.0))


def test_ten_crops_are_corners_middle_and_their_mirror_images():
    images = np.arange(2 * 6 * 8).reshape(2, 6, 8, 1)
    crops = np.asarray(views.ten_crops(images, 4))
    assert crops.shape == (10, 2, 4, 4, 1)
    assert crops[:5, 0, 0, 0, 0].tolist() == [0, 4, 16, 20, 10]
    np.testing.assert_array_equal(crops[5:], crops[:5, :, :, ::-1])
    np.testing.assert_array_equal(views.centre(images, 4), crops[4])
    with pytest.raises(UserError, match=r"^a crop of 7x7 is larger than its image of 6x8$"):
        views.ten_crops(images, 7)


def test_over_crops_averages_probabilities():
    images = np.random.default_rng(0).normal(size=(3, 5, 5, 2)).astype(np.float32)

    def forward(crop):
        return crop[:, 0, :3, 0] * 2

    every = jax.nn.softmax(np.stack([forward(crop) for crop in np.asarray(views.ten_crops(images, 4))]))
    over = jax.jit(functools.partial(views.over_crops, forward), static_argnums=(1, 2))
    np.testing.assert_allclose(np.exp(over(images, 4)), np.mean(every, 0), rtol=1e-5)
    np.testing.assert_allclose(over(images, 4, 1), forward(views.centre(images, 4)))
