"""A small student that learns from the reference's answers instead of labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from compression.base import (
    AnyPass,
    BrokenPromiseError,
    Facts,
    Pass,
    PassContext,
    PassRefusedError,
    Settings,
    usual_width,
)
from compression.hints import Hinted, Pair, Watching, attention_loss, hint_loss, hinted, pairs_of
from compression.imitation import AGREEMENTS, imitation_of, teacher_objective, teacher_of
from compression.losses import Batch, Outputs
from compression.model import Form, OnnxModel, TorchModel
from compression.rewriting import modernized, plain
from compression.stored_size import check_stored, stored_facts
from compression.training import Objective, predict, seeded

# The student that is the model that came in.
CURRENT = "current"


class DistillationSettings(Settings):
    """Settings of `distill`.

    Attributes:
        student: One of the spec's students by name, trained from scratch; `current` teaches the model
            that came in, such as a pruned or quantized one, further.
        width: Of a student that comes in several; None for its usual one.
        temperature: Softens teacher and student alike, so that the teacher's doubts are seen.
        alpha: Weight of the teacher; the labels weigh `1 - alpha`. Without labels only the teacher counts.
            0, without hints or attention, trains the same student on labels alone: the baseline that tells
            what the teacher was worth.
        hint_weight: Weight of the distance of features, the student's brought to the teacher's width.
        attention_weight: Weight of the distance of attention maps.
        hints: Pairs of a teacher's and a student's module, by name, that hints and attention compare; empty
            for the last ones of both at each height and width.
        epochs: Passes over the training split; None for as many as the model's training has.
        learning_rate: Peak learning rate; None for the model's own from scratch and a third of it further.
    """

    student: str
    width: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=4.0, gt=0.0)
    alpha: float = Field(default=0.7, ge=0.0, le=1.0)
    hint_weight: float = Field(default=0.0, ge=0.0)
    attention_weight: float = Field(default=0.0, ge=0.0)
    hints: tuple[tuple[str, str], ...] = ()
    epochs: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0.0)

    @property
    def inside(self) -> bool:
        """Whether the student learns from the teacher's layers and not from its answers alone."""
        return self.hint_weight > 0 or self.attention_weight > 0

    @property
    def taught(self) -> bool:
        """Whether there is a teacher at all."""
        return self.alpha > 0 or self.inside


class Distillation(Pass[DistillationSettings, TorchModel, TorchModel]):
    """Trains a student on the reference's soft targets.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network". Hints (Romero et al. 2015)
    and attention maps (Zagoruyko and Komodakis 2017) teach from inside as well. A model trained on `mse` is
    imitated in its outputs instead.
    """

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 3
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    settings_class: ClassVar[type[Settings]] = DistillationSettings

    def refused_after(self, before: AnyPass) -> str:
        """Refuses to throw away what was made before."""
        student = self.settings.student
        return (
            ""
            if student == CURRENT
            else f"{student} begins anew, without it. Teach {CURRENT}, or put it behind"
        )

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that there are a teacher, a student, and a way in which one imitates the other."""
        settings, teacher = self.settings, teacher_of(context)
        if settings.student not in (CURRENT, *context.students):
            known = ", ".join((CURRENT, *context.students))
            raise PassRefusedError(
                f'the spec has no student "{settings.student}". There are {known}; add one to students.'
            )
        make = context.students.get(settings.student)
        if settings.width and (make is None or usual_width(make) is None):
            raise PassRefusedError(f'student "{settings.student}" comes in one width. Leave width out.')
        imitation_of(context.training)
        if not settings.taught and context.splits.train.labels is None:
            raise PassRefusedError(
                "without a teacher there is nothing to learn from but labels. Raise alpha."
            )
        student = self._student(model, context)
        self._check_size(student, teacher)
        if settings.inside:
            pairs = self._pairs(student, context)
            flat = [pair.student for pair in pairs if pair.rank != 4]
            if settings.attention_weight and flat:
                raise PassRefusedError(
                    f"{', '.join(flat)} gives no feature maps, so there is no attention over positions. Set "
                    "attention_weight to 0 and use hint_weight."
                )

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the student after its best epoch."""
        settings, student = self.settings, self._student(model, context)
        further = settings.student == CURRENT
        usual_rate = context.training.learning_rate / 3 if further else context.training.learning_rate
        train = partial(
            context.fit,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate or usual_rate,
            from_scratch=not further,
        )
        if not settings.inside:
            return train(student, objective=teacher_objective(context, settings.temperature, settings.alpha))
        pairs = self._pairs(student, context)
        whole = hinted(student, pairs, regressed=settings.hint_weight > 0, seed=context.seed)
        learned = train(whole, objective=self._inside(pairs, context)).module
        assert isinstance(learned, Hinted)
        return TorchModel(learned.student, student.signature)

    def _inside(self, pairs: Sequence[Pair], context: PassContext) -> Objective:
        """Answers, hints and attention together; the epoch is chosen by the answers alone."""
        settings, teacher = self.settings, teacher_of(context)
        layers = [pair.teacher for pair in pairs]
        watching = Watching(teacher, context.training, context.splits.validation, layers)
        answers = teacher_objective(context, settings.temperature, settings.alpha, watching)
        count, ends = len(pairs), len(teacher.signature.outputs)

        def train(outputs: Outputs, batch: Batch) -> Tensor:
            loss = answers.train(outputs[:ends], batch)
            taught, learned, regressed = (
                watching.features(batch),
                outputs[ends:][:count],
                outputs[ends + count :],
            )
            for weight, distance, features in (
                (settings.hint_weight, hint_loss, regressed),
                (settings.attention_weight, attention_loss, learned),
            ):
                if weight:
                    each = [distance(*compared) for compared in zip(features, taught, strict=True)]
                    loss = loss + weight * torch.stack(each).mean()
            return loss

        def validation(outputs: Outputs, batch: Batch) -> Tensor:
            return answers.validation(outputs[:ends], batch)

        weights = [settings.hint_weight, settings.attention_weight]
        names = [[pair.teacher, pair.student] for pair in pairs]
        return Objective(train, validation, f"{answers.key}, inside {[teacher.digest(), weights, names]}")

    def _pairs(self, student: TorchModel, context: PassContext) -> tuple[Pair, ...]:
        return pairs_of(teacher_of(context), student, context.splits.validation, self.settings.hints)

    def _check_size(self, student: TorchModel, teacher: TorchModel) -> None:
        """A student from scratch is smaller; one that came in is different: sparse or of fewer bits."""
        if self.settings.student == CURRENT:
            if student.weights_digest() == plain(teacher).weights_digest():
                raise PassRefusedError(
                    "the student is its own teacher. Name a student, or prune or quantize first."
                )
        elif _size(student) >= _size(teacher):
            raise PassRefusedError(
                f"the student has {_size(student)} parameters, its teacher {_size(teacher)}. Use a smaller "
                "student, or prune and teach what is left."
            )

    def _student(self, model: TorchModel, context: PassContext) -> TorchModel:
        if self.settings.student == CURRENT:
            return model
        chosen = {"width": self.settings.width} if self.settings.width else {}
        with seeded(context.seed):
            student = modernized(context.students[self.settings.student](**chosen))
            return TorchModel(student, model.signature)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that the student did not grow, changed, and agrees with its teacher more than by chance."""
        teacher, student = teacher_of(context), self._student(before, context)
        if after.module.state_dict().keys() != student.module.state_dict().keys():
            raise BrokenPromiseError(
                "the student's weights are not those that it began with. Drop its hints."
            )
        if after.weights_digest() == student.weights_digest():
            raise BrokenPromiseError("the student's weights did not change. Raise epochs or learning_rate.")
        validation = context.splits.validation
        said, taught = predict(after, validation), predict(teacher, validation)
        agreement, chance = AGREEMENTS[context.training.loss](said, taught, validation.labels)
        if agreement <= chance:
            raise BrokenPromiseError(
                f"the student agrees with its teacher on {agreement:.3f} of validation, chance is "
                f"{chance:.3f}. Raise epochs or give the student more width."
            )
        return {
            "taught": self.settings.taught,
            "hints": self._compared(student, context),
            "teacher_parameters": _size(teacher),
            "student_parameters": _size(after),
            **stored_facts(teacher, after),
            "agreement": agreement,
            "chance": chance,
        }

    def _compared(self, student: TorchModel, context: PassContext) -> list[list[str]]:
        pairs = self._pairs(student, context) if self.settings.inside else ()
        return [[pair.teacher, pair.student] for pair in pairs]

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the artifact of a smaller student stores about as few weights as it has."""
        if facts["student_parameters"] < facts["teacher_parameters"]:
            check_stored(facts, artifact, self.name)


def _size(model: TorchModel) -> int:
    return sum(parameter.numel() for parameter in model.module.parameters())
