"""Samples: texts of many kinds, on which an export is compared with PyTorch."""

TEXTS = (
    "The film was wonderful, and the ending made everyone in the theatre cry.",
    "I did not like the food; the service was slow and the room was cold.",
    "No.",
    "Researchers at the University of Seoul measured 1,234 samples between March and June of 2019, and found that "
    "three of them differed from the rest.",
    "Anna Smith moved from Paris to Berlin last winter, where she works for Siemens.",
    "Is this the train to Oxford? Yes, it leaves at 10:45 from platform 7.",
    "Prices rose by 3.5% in March, the central bank said on Tuesday; most economists had expected less.",
    "The committee could not agree. Some members wanted to repair the old bridge, others to build a new one further "
    "north, and the mayor asked everybody to wait for the report of the engineers, which is due in autumn. Until then, "
    "lorries have to take the road along the river, and the residents there complain about the noise at night.",
    "absolutely terrible!!! would not recommend 😡",
    "정말 재미있는 영화였어요. 배우들의 연기도 훌륭했습니다.",
    "음식은 맛이 없었고 직원은 불친절했다.",
    "김민수는 1998년 부산에서 태어나 런던에서 공부한 뒤 서울의 한 병원에서 의사로 일하고 있다.",
    "오늘 날씨가 좋아서 공원에 갔다 왔어요 😀",
    "Le train part à midi ; je ne l'ai pas vu hier, mais ma sœur l'a pris à Genève.",
    "Die Straße ist gesperrt, deshalb fahren wir über München.",
    "El niño comió una manzana roja en el jardín de su abuela.",
    "日本の首都は東京です。とても大きい都市です。",
    "Москва — столица России, город на реке.",
    "الكتاب على الطاولة",
    "great 👍 👨‍👩‍👧 café naïve Zoë 🎉🎉 50€",
    "def add(a, b): return a + b  # code, too",
    "What time is it?",
    "Thank you very much for your help yesterday.",
    "She opened the window because the room was too warm.",
)

QUESTIONS = (
    ("Where does Anna Smith work?", "Anna Smith moved from Paris to Berlin last winter, where she works for Siemens."),
    (
        "How many samples were measured?",
        "Researchers at the University of Seoul measured 1,234 samples between March and June of 2019, and found that "
        "three of them differed from the rest.",
    ),
    (
        "Why do the residents complain?",
        "The committee could not agree. Some members wanted to repair the old bridge, others to build a new one "
        "further north, and the mayor asked everybody to wait for the report of the engineers, which is due in "
        "autumn. Until then, lorries have to take the road along the river, and the residents there complain about "
        "the noise at night.",
    ),
    ("When does the train leave?", "The train to Oxford leaves at 10:45 from platform 7."),
    (
        "김민수는 어디에서 태어났나요?",
        "김민수는 1998년 부산에서 태어나 런던에서 공부한 뒤 서울의 한 병원에서 일하고 있다.",
    ),
    ("대한민국의 수도는 어디인가?", "서울은 대한민국의 수도이며 한강이 흐른다. 인구는 약 940만 명이다."),
    ("Who said it?", "Prices rose by 3.5% in March, the central bank said on Tuesday."),
    ("Où part le train ?", "Le train part à midi pour Genève ; il arrive le soir."),
)

ODD_TEXTS = (
    "",
    " ",
    "\n\t ",
    "  two  spaces\tand a tab\n and lines\r\n",
    "no\u00a0break\u2009thin\u3000wide\u200bzero",
    "cafe\u0301 nai\u0308ve Zoe\u0308",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165 문장",
    "ＦＵＬＬ　ｗｉｄｔｈ ① ½ ﬁn ™ …",
    "unseen \U00013000\U00013001 \U0001f9ff ᚠᚢ ꙮ x\U00010348y",
    "a</s>b <unk> <pad> </s>",
    "▁ already ▁marked▁",
    "ALL CAPS, MiXeD, 12345678901234567890, aaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.org/a?b=c&d=%20 user@example.org #tag @name $5 [x] {y} <z> \\n",
    "«guillemets» “quotes” ‘single’ — dash – dash ‑ hyphen",
    "tail space ",
    "\u0007bell\u0000null\u00adsoft",
)
