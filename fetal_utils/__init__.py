"""The shared code of the notebooks. A session of one's own begins with these:

from fetal_utils.data import open_dataset
from fetal_utils.transforms import PRESETS, Augment, two_views
from fetal_utils.losses import nt_xent_loss
from fetal_utils.models import build_encoder, extract_features, initial_weights, load_weights
from fetal_utils.simclr import Pretrain, SimCLR, simclr_step
from fetal_utils.training import DualTask, FineTune, LinearProbe, linear_probe, supervised_step
from fetal_utils.strategies import STRATEGIES, Strategy, supervised_run
from fetal_utils.runs import RunStore
from fetal_utils.evaluation import score_runs
from fetal_utils.comparison import compare, label_efficiency
"""
