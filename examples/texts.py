"""The texts of two examples: sentences of movie reviews, which `make data` fetches, and a tokenizer made from them."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from es_service.training.tasks import reviews


def load(folder="data"):
    """Return 3,000 sentences, whether each is praise, and a tokenizer made from them."""
    task = reviews.build(folder)
    texts, labels = [task.preview(row) for row in range(3000)], task.labels[:3000].tolist()
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "eos_token": "[SEP]"}
    return texts, labels, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
