# ruff: noqa: E501, RUF001
"""Prose in five languages (and some code) against which token counts are judged."""

from __future__ import annotations

import random

SENTENCES: dict[str, list[str]] = {
    "english": [
        "The library opens at nine, but the reading room on the second floor stays locked until the librarian arrives.",
        "When the storm had passed, the fishermen walked along the beach and counted the boats that were still afloat.",
        "Please summarise the attached report in five bullet points and list every assumption that has not been tested.",
        "Her grandmother kept a garden behind the house where tomatoes, beans and sunflowers grew without much order.",
        "The committee postponed its decision because two members had not received the revised budget in time.",
        "A good map leaves out almost everything; what remains tells you where to go and what to avoid.",
        "Investors were surprised by the quarterly results, although the warning signs had been visible for months.",
        "How many litres of paint are needed for a wall that is four metres wide and two and a half metres high?",
        "He repaired the old radio with a soldering iron, a great deal of patience and parts from a broken toaster.",
        "The train to the coast leaves every half hour, except on Sundays, when it does not run after eight o'clock.",
        "Scientists compared the two samples under a microscope and found no difference that would explain the disease.",
        "Nobody remembers who planted the oak in the market square, yet everybody knows the stories told beneath it.",
    ],
    "german": [
        "Die Bibliothek öffnet um neun Uhr, aber der Lesesaal im zweiten Stock bleibt bis zum Mittag geschlossen.",
        "Nach dem Sturm gingen die Fischer am Strand entlang und zählten die Boote, die noch auf dem Wasser lagen.",
        "Bitte fassen Sie den beigefügten Bericht in fünf Punkten zusammen und nennen Sie alle ungeprüften Annahmen.",
        "Ihre Großmutter hatte hinter dem Haus einen Garten, in dem Tomaten, Bohnen und Sonnenblumen wuchsen.",
        "Der Ausschuss verschob seine Entscheidung, weil zwei Mitglieder den neuen Haushaltsplan nicht erhalten hatten.",
        "Eine gute Karte lässt fast alles weg; was übrig bleibt, zeigt den Weg und warnt vor Gefahren.",
        "Die Anleger waren von den Quartalszahlen überrascht, obwohl die Warnzeichen seit Monaten sichtbar waren.",
        "Wie viele Liter Farbe braucht man für eine Wand, die vier Meter breit und zweieinhalb Meter hoch ist?",
        "Er reparierte das alte Radio mit einem Lötkolben, viel Geduld und Teilen aus einem kaputten Toaster.",
        "Der Zug an die Küste fährt jede halbe Stunde, außer sonntags, wenn nach acht Uhr keiner mehr verkehrt.",
        "Die Forscher verglichen beide Proben unter dem Mikroskop und fanden keinen Unterschied, der alles erklärt.",
        "Niemand weiß mehr, wer die Eiche auf dem Marktplatz gepflanzt hat, doch jeder kennt ihre Geschichten.",
    ],
    "spanish": [
        "La biblioteca abre a las nueve, pero la sala de lectura del segundo piso permanece cerrada hasta mediodía.",
        "Cuando pasó la tormenta, los pescadores caminaron por la playa y contaron los barcos que seguían a flote.",
        "Por favor, resume el informe adjunto en cinco puntos y enumera las suposiciones que no se han comprobado.",
        "Su abuela tenía detrás de la casa un jardín donde crecían tomates, judías y girasoles sin mucho orden.",
        "El comité aplazó la decisión porque dos miembros no habían recibido a tiempo el presupuesto revisado.",
        "Un buen mapa omite casi todo; lo que queda te dice adónde ir y qué conviene evitar.",
        "Los inversores se sorprendieron con los resultados, aunque las señales eran visibles desde hacía meses.",
        "¿Cuántos litros de pintura se necesitan para una pared de cuatro metros de ancho y dos y medio de alto?",
        "Reparó la vieja radio con un soldador, mucha paciencia y piezas sacadas de una tostadora rota.",
        "El tren hacia la costa sale cada media hora, excepto los domingos, cuando no circula después de las ocho.",
        "Los científicos compararon las dos muestras al microscopio y no hallaron diferencias que lo explicaran.",
        "Nadie recuerda quién plantó el roble de la plaza, pero todos conocen las historias que se cuentan allí.",
    ],
    "russian": [
        "Библиотека открывается в девять, но читальный зал на втором этаже закрыт до прихода библиотекаря.",
        "Когда буря утихла, рыбаки пошли вдоль берега и пересчитали лодки, которые ещё держались на воде.",
        "Пожалуйста, кратко изложите приложенный отчёт в пяти пунктах и перечислите непроверенные предположения.",
        "У её бабушки за домом был сад, где без особого порядка росли помидоры, фасоль и подсолнухи.",
        "Комитет отложил решение, потому что двое участников не получили вовремя исправленный бюджет.",
        "Хорошая карта опускает почти всё; то, что остаётся, подсказывает, куда идти и чего избегать.",
        "Инвесторов удивили квартальные результаты, хотя тревожные признаки были заметны уже много месяцев.",
        "Сколько литров краски нужно для стены шириной четыре метра и высотой два с половиной метра?",
        "Он починил старое радио с помощью паяльника, большого терпения и деталей от сломанного тостера.",
        "Поезд к побережью отправляется каждые полчаса, кроме воскресенья, когда после восьми он не ходит.",
        "Учёные сравнили два образца под микроскопом и не нашли различий, которые объяснили бы болезнь.",
        "Никто не помнит, кто посадил дуб на рыночной площади, но все знают истории, рассказанные под ним.",
    ],
    "chinese": [
        "图书馆九点开门,但是二楼的阅览室要等管理员来了才会开放。",
        "暴风雨过后,渔民们沿着海滩走去,清点还浮在水面上的船只。",
        "请用五个要点总结附件中的报告,并列出所有尚未验证的假设。",
        "她的祖母在屋后有一个花园,种着西红柿、豆子和向日葵,没有什么秩序。",
        "委员会推迟了决定,因为有两名成员没有及时收到修改后的预算。",
        "好的地图几乎省略了一切,剩下的内容告诉你该去哪里,该避开什么。",
        "投资者对季度业绩感到惊讶,尽管几个月来警告信号一直很明显。",
        "一面宽四米、高两米半的墙需要多少升油漆?",
        "他用电烙铁、极大的耐心和坏掉的烤面包机里的零件修好了旧收音机。",
        "开往海边的火车每半小时一班,星期天除外,那天八点以后就停运了。",
        "科学家们在显微镜下比较了两个样本,没有发现能够解释这种疾病的差异。",
        "没有人记得是谁在集市广场种下了那棵橡树,但每个人都知道树下流传的故事。",
    ],
}

CODE = '''def merge(left: list[int], right: list[int]) -> list[int]:
    """Two sorted lists as one."""
    result, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]


class Account:
    def __init__(self, owner: str, balance: float = 0.0) -> None:
        self.owner = owner
        self._balance = balance

    def withdraw(self, amount: float) -> None:
        if amount > self._balance:
            raise ValueError(f"{self.owner} has only {self._balance:.2f}")
        self._balance -= amount
'''


def prose(language: str, chars: int, seed: int = 0) -> str:
    """About `chars` characters of `language`: its sentences in a random order, in paragraphs."""
    rng = random.Random(seed)
    parts: list[str] = []
    size = 0
    while size < chars:
        order = SENTENCES[language][:]
        rng.shuffle(order)
        for n, sentence in enumerate(order):
            parts.append(sentence + ("\n\n" if n % 4 == 3 else " "))
            size += len(parts[-1])
    return "".join(parts)[:chars]
