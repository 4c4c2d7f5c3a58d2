"""Words for the templates: names, nouns, countries. Longer than needed, since every tokenizer keeps others whole.

Owns: the lists and nothing else. A change of a list changes prompts, so it needs a new version of its behaviours.
"""

WOMEN = tuple(
    """Mary Alice Anna Emily Emma Sarah Laura Jane Kate Lucy Lily Rose Grace Helen Julia Susan Linda Karen Lisa Nancy
    Betty Sandra Ashley Donna Carol Michelle Amanda Melissa Deborah Stephanie Rebecca Sharon Cynthia Kathleen Amy Angela
    Shirley Brenda Pamela Nicole Samantha Katherine Christine Rachel Carolyn Janet Maria Heather Diane Olivia Sophia
    Isabella Mia Charlotte Abigail Ava Ella Chloe Victoria Madison Hannah Natalie Zoe Leah Hazel Violet Claire Ruth
    Sara Jill Sue Ellen Martha Teresa Vanessa Jessica Jennifer Elizabeth Barbara Margaret Dorothy Erin Megan Molly Holly
    Kelly Wendy Tina Nina Diana Fiona Eva Joan Judy Lola Daisy Ivy Bella Becky Mandy""".split()
)
MEN = tuple(
    """John James Robert Michael William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Donald Steven
    Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric
    Jonathan Stephen Larry Justin Scott Brandon Benjamin Samuel Gregory Frank Alexander Raymond Patrick Jack Dennis
    Jerry Tyler Aaron Jose Adam Nathan Henry Douglas Zachary Peter Kyle Walter Ethan Jeremy Harold Keith Christian Roger
    Noah Gerald Carl Terry Sean Austin Arthur Lawrence Jesse Dylan Bryan Joe Jordan Billy Bruce Albert Willie Gabriel
    Logan Alan Juan Wayne Roy Ralph Randy Eugene Vincent Russell Elijah Louis Bobby Philip Johnny Luke Simon Oliver
    Max Tom Ben Sam Tim Jim Bob Fred Leo Oscar Martin Neil Ian Graham Colin Stuart Ivan Timmy Tommy Jake
    Hugo Felix""".split()
)
PLACES = "store park school office garden station hospital museum restaurant library".split()
GIFTS = "drink book ring hat letter ball cup map bag pen ticket key".split()

NOUNS = tuple(
    (noun, noun + "s")
    for noun in """key dog cat bird horse boat car tree chair door window wheel clock shirt shoe picture camera book
    letter teacher doctor farmer sailor soldier singer painter writer driver lawyer nurse tailor pilot guard player
    runner dancer worker friend cousin neighbor guest visitor stranger captain prince knight wizard giant robot rocket
    engine train truck ladder hammer needle button ring hat coat lamp cup plate bottle ticket flag drum guitar student
    author editor manager officer actor artist scientist engineer king queen boy girl parent brother sister uncle toy
    doll ball boat star flower apple cake cookie lion tiger bear monkey rabbit snake frog duck pig cow""".split()
)
DISTRACTORS = tuple(
    (noun, noun + "s")
    for noun in "table cabinet house road bridge field tower gate fence hill wall river market building".split()
)

EVENTS = tuple(
    """war siege reign strike trial voyage project campaign expedition dispute famine drought truce empire
    program contract tour plan""".split()
)
CENTURIES = tuple("11 12 13 14 15 16 17".split())
YEARS = tuple(f"{year:02d}" for year in range(1, 100))

# country, capital, language, continent; "" where a fact is disputed or the name is of several words
COUNTRIES = tuple(
    tuple(part.strip() for part in line.split(","))
    for line in """France,Paris,French,Europe; Italy,Rome,Italian,Europe; Germany,Berlin,German,Europe;
    Spain,Madrid,Spanish,Europe; Portugal,Lisbon,Portuguese,Europe; England,London,English,Europe;
    Ireland,Dublin,English,Europe; Scotland,Edinburgh,English,Europe; Austria,Vienna,German,Europe;
    Belgium,Brussels,,Europe; Holland,Amsterdam,Dutch,Europe; Denmark,Copenhagen,Danish,Europe;
    Sweden,Stockholm,Swedish,Europe; Norway,Oslo,Norwegian,Europe; Finland,Helsinki,Finnish,Europe;
    Iceland,Reykjavik,Icelandic,Europe; Poland,Warsaw,Polish,Europe; Hungary,Budapest,Hungarian,Europe;
    Greece,Athens,Greek,Europe; Bulgaria,Sofia,Bulgarian,Europe; Romania,Bucharest,Romanian,Europe;
    Serbia,Belgrade,Serbian,Europe; Croatia,Zagreb,Croatian,Europe; Ukraine,Kiev,Ukrainian,Europe;
    Russia,Moscow,Russian,; Turkey,Ankara,Turkish,; Egypt,Cairo,Arabic,Africa; Morocco,Rabat,Arabic,Africa;
    Algeria,Algiers,Arabic,Africa; Tunisia,Tunis,Arabic,Africa; Libya,Tripoli,Arabic,Africa;
    Kenya,Nairobi,,Africa; Ghana,Accra,English,Africa; Nigeria,Abuja,English,Africa; Ethiopia,Addis,,Africa;
    Sudan,Khartoum,Arabic,Africa; Somalia,Mogadishu,Somali,Africa; Angola,Luanda,Portuguese,Africa;
    Senegal,Dakar,French,Africa; Zimbabwe,Harare,,Africa; China,Beijing,Chinese,Asia; Japan,Tokyo,Japanese,Asia;
    Korea,Seoul,Korean,Asia; Vietnam,Hanoi,Vietnamese,Asia; Thailand,Bangkok,Thai,Asia; India,Delhi,,Asia;
    Pakistan,Islamabad,,Asia; Nepal,Kathmandu,,Asia; Afghanistan,Kabul,,Asia; Iran,Tehran,Persian,Asia;
    Iraq,Baghdad,Arabic,Asia; Syria,Damascus,Arabic,Asia; Lebanon,Beirut,Arabic,Asia; Qatar,Doha,Arabic,Asia;
    Indonesia,Jakarta,,Asia; Philippines,Manila,,Asia; Malaysia,,Malay,Asia; Cambodia,,Khmer,Asia;
    Mongolia,,Mongolian,Asia; Canada,Ottawa,,America; Cuba,Havana,Spanish,America; Mexico,,Spanish,America;
    Jamaica,Kingston,English,America; Peru,Lima,Spanish,America; Chile,Santiago,Spanish,America;
    Venezuela,Caracas,Spanish,America; Argentina,,Spanish,America; Brazil,,Portuguese,America;
    Colombia,,Spanish,America; Uruguay,,Spanish,America; Ecuador,,Spanish,America; Bolivia,,Spanish,America;
    Panama,,Spanish,America; Albania,,Albanian,Europe; Lithuania,,Lithuanian,Europe; Latvia,Riga,Latvian,Europe;
    Estonia,,Estonian,Europe; Slovenia,,,Europe; Georgia,,Georgian,""".split(";")
)
