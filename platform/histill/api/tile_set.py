"""Open a tile set and stream it, in a notebook or in a training loop of one's own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from histill.config.augment import Augment
from histill.config.common import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from histill.stream.cached_views import CachedViews
    from histill.stream.loader import TileLoader
    from histill.tiles.manifest import Manifest


def open_tiles(uri: str, *, storage: Storage | None = None) -> "TileSet":
    """Open the tile set at `uri`, a local folder or s3://; reads its manifest.

    Raises:
        InputError: there is no tile set, or it cannot be read.

    Examples:
        >>> tiles = histill.open_tiles("s3://bucket/tiles/biopsies")
        >>> tiles.splits, tiles.classes
        ({'train': 812, 'val': 96, 'test': 104}, ('benign', 'tumor'))
    """
    from histill.tiles.manifest_file import read_manifest

    storage = storage or Storage()
    return TileSet(read_manifest(str(uri), storage), storage)


@dataclass(frozen=True)
class TileSet:
    """Square tiles of one size and resolution, in Parquet shards, with their labels, masks and cases."""

    manifest: "Manifest" = field(repr=False)
    storage: Storage = field(repr=False)

    @property
    def uri(self) -> str:
        """Where it is stored; keys of configurations take the tile set itself in its place."""
        return self.manifest.uri

    @property
    def digest(self) -> str:
        """SHA-256 over the contents of all tiles, labels and cases."""
        return self.manifest.header.digest

    @property
    def tile_px(self) -> int:
        """Side of the tiles in pixels."""
        return self.manifest.header.tile_px

    @property
    def mpp(self) -> float:
        """Microns per pixel of the tiles."""
        return self.manifest.header.mpp

    @property
    def splits(self) -> dict[str, int]:
        """The number of tiles of each split."""
        return dict(self.manifest.header.splits)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, ascending; empty if the tiles have none."""
        return self.manifest.header.labels

    @property
    def table(self) -> "pa.Table":
        """A row for each tile: its id, case, slide, place, split, label and so on. `.to_pandas()` makes a frame.

        It is read whole each time, 250 bytes for each tile.
        """
        from histill.tiles.whole_table import read_table

        return read_table(self.manifest)

    def __len__(self) -> int:
        return self.manifest.header.tiles

    def __repr__(self) -> str:
        return f"TileSet({self.uri!r}: {len(self)} tiles of {self.tile_px} px at {self.mpp:g} um/px, {self.splits})"

    def stream(
        self,
        split: str = "train",
        *,
        student_px: int | None = None,
        teacher_px: int | None = None,
        batch_size: int = 64,
        shuffle: bool | None = None,
        seed: int = 0,
        augment: Augment | dict[str, Any] | None = None,
        balance: str | None = None,
        masks: bool = False,
        responses: str | None = None,
        embeddings: Mapping[str, str] | None = None,
        threads: int = 2,
        max_corrupt: int = 0,
    ) -> "TileLoader":
        """The tiles of `split` in batches; each iteration is an epoch.

        Tiles are read from storage ahead of the loop and decoded on `threads` threads, once for both views. A batch is
        a `TileBatch`, which `batch.to("cuda")` moves:

        - `student`, uint8 [B, 3, student_px, student_px], channels last in memory, and `teacher`, the same tiles at
          `teacher_px`, or None;
        - `label`, int64 [B], an index into `classes`, -1 for none; None if no tile has any;
        - `mask`, uint8 [B, H, W], 255 where nothing is known, or None;
        - `response` and `embeddings`, a teacher's cached answers;
        - `valid`, bool [B], False for what fills the last batch, and `index`, int64 [B], rows of `table`.

        Args:
            split: `train`, `val` or `test`.
            student_px: side at which tiles are shown, in pixels; None: their own.
            teacher_px: side of a second view of the same tiles; None: no second view.
            batch_size: tiles in a batch, over all ranks.
            shuffle: a new order in each epoch; None: of the training split alone.
            seed: of order and augmentation.
            augment: an `Augment` or its keys, such as `{"flips": True, "crop_px": 128}`; None: none.
            balance: a column of the table whose values each get an equal share of an epoch, such as "label".
            masks: decode masks, too.
            responses: a cache of `cache_responses`, whose answers come with the tiles; None: none.
            embeddings: caches of embeddings, by a name for each teacher.
            threads: that decode.
            max_corrupt: undecodable tiles to leave out; one more ends the loop.

        Raises:
            InputError: an argument is wrong, the split is empty, the cache is another tile set's, or the window
                does not fit the tiles.

        Examples:
            >>> for batch in histill.open_tiles("tiles").stream("train", student_px=112, batch_size=64):
            ...     loss = criterion(network(batch.student.float() / 255), batch.label)
        """

        from histill.api.configure import make_plain
        from histill.config.load import validate
        from histill.config.stream_tiles import StreamKeys
        from histill.errors import InputError
        from histill.outputs import OutputSpec
        from histill.stream.index import check_balance
        from histill.stream.loader import TileLoader
        from histill.stream.read import TileSource
        from histill.stream.tile_stream import TileStream
        from histill.stream.views import UPRIGHT, Views, check_sides, check_window
        from histill.teachers.cache import check_tiles, read_header

        given = {name: value for name, value in locals().items() if name in StreamKeys.model_fields}  # the arguments
        keys = validate(StreamKeys, make_plain(given), "stream", in_python=True)
        tiles = self.manifest.select(split)  # refuses an empty split now, rather than in the loop
        views = Views(keys.student_px or self.tile_px, keys.teacher_px)
        how = keys.augment or UPRIGHT
        check_sides(views, self.tile_px)
        if keys.balance is not None:
            check_balance(self.manifest, split, keys.balance)
        if keys.masks and not self.manifest.header.masks:
            raise InputError(f"{self.uri} has no masks; leave masks out.", code="mask-missing")
        check_window(how, self.tile_px, views, stride=1)

        def open_cache(uri: str) -> "CachedViews":
            header = read_header(uri, self.storage)
            check_tiles(uri, header, self.manifest)
            return header.at(uri)

        outputs = OutputSpec("classification", self.classes)
        return TileLoader(
            TileStream(
                manifest=self.manifest,
                source=TileSource(
                    self.uri,
                    self.digest,
                    self.storage,
                    masks=keys.masks,
                    responses=None if keys.responses is None else open_cache(keys.responses),
                    embeddings=tuple((name, open_cache(each)) for name, each in (keys.embeddings or {}).items()),
                ),
                split=split,
                views=views,
                batch_size=keys.batch_size,
                worker=0,
                workers=1,
                labels=self.manifest.labels_of(outputs, tiles, needed=False) if self.classes else None,
                threads=keys.threads,
                max_corrupt=keys.max_corrupt,
                balance=keys.balance,
            ),
            shuffle=split == "train" if keys.shuffle is None else keys.shuffle,
            seed=keys.seed,
            augment=how,
        )
