from . import (
    attacks as attacks,
)
from . import (
    data as data,
)
from . import (
    defenses as defenses,
)
from . import (
    detectors as detectors,
)
from . import (
    errors as errors,
)
from . import (
    evaluation as evaluation,
)
from . import (
    models as models,
)
from . import (
    scans as scans,
)
from . import (
    sources as sources,
)
from . import (
    text as text,
)
from .attacks import (
    DP as DP,
)
from .attacks import (
    LLM as LLM,
)
from .attacks import (
    Adaptive as Adaptive,
)
from .attacks import (
    Bandwagon as Bandwagon,
)
from .attacks import (
    CoVisit as CoVisit,
)
from .attacks import (
    Gradient as Gradient,
)
from .attacks import (
    NoAttack as NoAttack,
)
from .attacks import (
    Random as Random,
)
from .attacks import (
    Replace as Replace,
)
from .attacks import (
    Rev as Rev,
)
from .attacks import (
    Segment as Segment,
)
from .attacks import (
    choose_targets as choose_targets,
)
from .attacks import (
    forge as forge,
)
from .attacks import (
    known_fakes as known_fakes,
)
from .attacks import (
    open_poison as open_poison,
)
from .attacks import (
    save_poison as save_poison,
)
from .data import (
    Catalog as Catalog,
)
from .data import (
    Dataset as Dataset,
)
from .data import (
    Poison as Poison,
)
from .data import (
    Protocol as Protocol,
)
from .data import (
    Sequences as Sequences,
)
from .data import (
    Split as Split,
)
from .data import (
    Weights as Weights,
)
from .data import (
    inject as inject,
)
from .data import (
    leave_two_out as leave_two_out,
)
from .defenses import (
    Filter as Filter,
)
from .defenses import (
    LLM4Dec as LLM4Dec,
)
from .defenses import (
    LoRec as LoRec,
)
from .defenses import (
    LoRecPaper as LoRecPaper,
)
from .defenses import (
    Oracle as Oracle,
)
from .defenses import (
    Undefended as Undefended,
)
from .defenses import (
    Weighted as Weighted,
)
from .detectors import (
    Degree as Degree,
)
from .detectors import (
    Suspicion as Suspicion,
)
from .detectors import (
    ZeroShot as ZeroShot,
)
from .detectors import (
    detect as detect,
)
from .evaluation import (
    Scorecard as Scorecard,
)
from .evaluation import (
    detection as detection,
)
from .evaluation import (
    evaluate as evaluate,
)
from .evaluation import (
    success_removed as success_removed,
)
from .experiment import (
    run as run,
)
from .grids import (
    Grid as Grid,
)
from .grids import (
    grid as grid,
)
from .grids import (
    read_grid_file as read_grid_file,
)
from .models import (
    BCE as BCE,
)
from .models import (
    FMLP as FMLP,
)
from .models import (
    GBCE as GBCE,
)
from .models import (
    Foreign as Foreign,
)
from .models import (
    GRU4Rec as GRU4Rec,
)
from .models import (
    Popularity as Popularity,
)
from .models import (
    Recommender as Recommender,
)
from .models import (
    SampledSoftmax as SampledSoftmax,
)
from .models import (
    SASRec as SASRec,
)
from .models import (
    Softmax as Softmax,
)
from .models import (
    load_recommender as load_recommender,
)
from .records import (
    Run as Run,
)
from .records import (
    open_run as open_run,
)
from .reports import (
    report as report,
)
from .runfile import (
    RunFile as RunFile,
)
from .runfile import (
    read_run_file as read_run_file,
)
from .scans import (
    Findings as Findings,
)
from .scans import (
    scan as scan,
)
from .sight import (
    Sight as Sight,
)
from .sources import (
    load as load,
)
from .sources import (
    read as read,
)
from .text import (
    Hash as Hash,
)
from .text import (
    MiniLM as MiniLM,
)
from .text import (
    TextVectors as TextVectors,
)
from .training import (
    Fit as Fit,
)
from .training import (
    Training as Training,
)
from .training import (
    fit as fit,
)

__all__ = [
    "BCE",
    "DP",
    "FMLP",
    "GBCE",
    "LLM",
    "Adaptive",
    "Bandwagon",
    "Catalog",
    "CoVisit",
    "Dataset",
    "Degree",
    "Filter",
    "Findings",
    "Fit",
    "Foreign",
    "GRU4Rec",
    "Gradient",
    "Grid",
    "Hash",
    "LLM4Dec",
    "LoRec",
    "LoRecPaper",
    "MiniLM",
    "NoAttack",
    "Oracle",
    "Poison",
    "Popularity",
    "Protocol",
    "Random",
    "Recommender",
    "Replace",
    "Rev",
    "Run",
    "RunFile",
    "SASRec",
    "SampledSoftmax",
    "Scorecard",
    "Segment",
    "Sequences",
    "Sight",
    "Softmax",
    "Split",
    "Suspicion",
    "TextVectors",
    "Training",
    "Undefended",
    "Weighted",
    "Weights",
    "ZeroShot",
    "choose_targets",
    "detect",
    "detection",
    "evaluate",
    "fit",
    "forge",
    "grid",
    "inject",
    "known_fakes",
    "leave_two_out",
    "load",
    "load_recommender",
    "open_poison",
    "open_run",
    "read",
    "read_grid_file",
    "read_run_file",
    "report",
    "run",
    "save_poison",
    "scan",
    "success_removed",
]
