// The browser of problems in report/index.html. Needs a browser from 2023 or later, and nothing from a network.
//
// Data stand beside the page in data/*.js, each a call of irpo.add(name, base64 of deflated JSON); shards.py says what is
// in them. All text of models and data reaches the page through textContent, never as HTML.
"use strict";

const irpo = (() => {
  const PAGE_SIZE = 25;
  const SHOWN_ANSWERS = 6;
  const CACHED_FILES = 60;
  const WORD_LENGTH = 32;
  const LAST_BIT = 30;
  const MIN_BEGINNING = 3;
  const MARKS = { correct: "✓", wrong: "✗", unparsable: "?", error: "!" };
  const FIELDS = ["kind", "index", "verdict", "layer", "answer", "second", "finish", "tokens", "text"];

  const byId = (id) => document.getElementById(id);
  const state = { split: null, index: null, places: [], page: 0, open: null, model: null, only: "all", words: [], turn: 0 };

  /** Make an element; strings among the children become text. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    return children.length ? fill(element, ...children) : element;
  }

  /** Give an element new children; null stands for none. */
  function fill(element, ...children) {
    element.replaceChildren(...children.flat().filter((child) => child !== null));
    return element;
  }

  // ---- files -------------------------------------------------------------------------------------------------------

  const waiting = new Map();
  const files = new Map();

  /** Called by each data file. */
  function add(name, data) {
    waiting.get(name)?.resolve(data);
  }

  /** The content of data/<name>.js, loaded once while it is among the last used. */
  function load(name) {
    let file = files.get(name);
    files.delete(name);
    file ??= runFile(name).then(decode);
    files.set(name, file);
    file.catch(() => files.delete(name));
    if (files.size > CACHED_FILES) files.delete(files.keys().next().value);
    return file;
  }

  function runFile(name) {
    return new Promise((resolve, reject) => {
      const script = make("script", { src: `data/${name}.js` });
      const finish = (settle, value) => (waiting.delete(name), script.remove(), settle(value));
      waiting.set(name, { resolve: (data) => finish(resolve, data) });
      script.onerror = () =>
        finish(reject, new Error(`data/${name}.js cannot be read. Copy the whole report folder, not the page alone.`));
      document.head.append(script);
    });
  }

  async function decode(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  }

  /** The last place whose value is not above `wanted`. */
  function lastNotAbove(values, wanted) {
    let low = 0;
    let high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] <= wanted) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  // ---- search ------------------------------------------------------------------------------------------------------

  const cutWords = (text) =>
    (text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? []).map((word) => [...word].slice(0, WORD_LENGTH).join(""));

  /** For each problem a mask of the models in whose completions, or the question, all words stand; null for no query. */
  async function search(query) {
    const words = cutWords(query);
    if (!words.length) return null;
    const total = new Int32Array(state.index.ids.length).fill(-1);
    for (const [place, word] of words.entries()) {
      const isLast = place === words.length - 1 && !/\s$/.test(query);
      const found = await findWord(word, isLast);
      for (let problem = 0; problem < total.length; problem++) {
        total[problem] &= found[problem] & 1 ? -1 : found[problem];
      }
    }
    const wanted = query.trim().toLowerCase();
    state.index.ids.forEach((id, problem) => {
      if (id.toLowerCase().includes(wanted)) total[problem] = -1;
    });
    return total;
  }

  /** Masks of the problems that hold a word, or, when it is not short, one that begins with it. */
  async function findWord(word, mayBegin) {
    const masks = new Int32Array(state.index.ids.length);
    const asBeginning = mayBegin && word.length >= MIN_BEGINNING;
    const { split, index } = state;
    const first = Math.max(0, lastNotAbove(index.word_shards, word));
    const last = asBeginning ? lastNotAbove(index.word_shards, `${word}\uffff`) : first;
    const numbers = Array.from({ length: Math.max(0, last - first + 1) }, (_, step) => first + step);
    for (const [words, postings] of await Promise.all(numbers.map((number) => load(`${split}-words-${pad(number)}`)))) {
      let place = Math.max(0, lastNotAbove(words, word));
      if (words[place] < word) place++;
      while (place < words.length && (words[place] === word || (asBeginning && words[place].startsWith(word)))) {
        const list = postings[place++];
        for (let at = 0; at < list.length; at += 2) masks[list[at]] |= list[at + 1];
      }
    }
    return masks;
  }

  const pad = (number) => String(number).padStart(4, "0");

  // ---- filters -----------------------------------------------------------------------------------------------------

  const samplesOf = (model, problem) => state.index.counts[model].reduce((sum, column) => sum + column[problem], 0);
  const shareOf = (model, problem) => state.index.counts[model][0][problem] / (samplesOf(model, problem) || 1);
  const hasGreedy = () => state.index.greedy.some((column) => column.some((verdict) => verdict >= 0));

  /** What "better" goes by: the greedy answer where there is one, else the share of correct samples. */
  function scoreOf(model, problem) {
    const greedy = state.index.greedy[model][problem];
    return greedy >= 0 ? Number(greedy === 0) : shareOf(model, problem);
  }

  const VERDICT_TESTS = {
    all: (model, problem) => state.index.counts[model][0][problem] > 0 && shareOf(model, problem) === 1,
    some: (model, problem) => shareOf(model, problem) > 0 && shareOf(model, problem) < 1,
    none: (model, problem) => samplesOf(model, problem) > 0 && shareOf(model, problem) === 0,
    pairs: (model, problem) => state.index.pairs[model][problem] > 0,
  };

  function verdictTest(choice) {
    if (choice in VERDICT_TESTS) return VERDICT_TESTS[choice];
    const [kind, verdict] = choice.split(" ");
    const place = state.index.verdicts.indexOf(verdict);
    if (kind === "greedy") return (model, problem) => state.index.greedy[model][problem] === place;
    return (model, problem) => state.index.counts[model][place][problem] > 0;
  }

  const CHANGE_TESTS = { better: (by) => by > 0, worse: (by) => by < 0, same: (by) => by === 0 };

  /** Find the problems that the form asks for, in its order, and show the first page. */
  async function update() {
    const turn = ++state.turn;
    byId("list").setAttribute("aria-busy", "true");
    const query = byId("query").value;
    const masks = await search(query);
    if (turn !== state.turn) return;
    state.words = cutWords(query);
    state.places = sortPlaces(choosePlaces(masks));
    state.page = 0;
    showList();
    byId("list").setAttribute("aria-busy", "false");
    if (state.open !== null) showCandidates();
  }

  function choosePlaces(masks) {
    const { models, ids } = state.index;
    const choice = byId("model").value;
    const candidates = choice === "any" ? [...models.keys()] : [Number(choice)];
    const isWanted = byId("verdict").value === "any" ? () => true : verdictTest(byId("verdict").value);
    const change = CHANGE_TESTS[byId("change").value];
    const [from, to] = [Number(byId("from").value), Number(byId("to").value)];
    const places = [];
    for (let problem = 0; problem < ids.length; problem++) {
      if (change && !change(scoreOf(to, problem) - scoreOf(from, problem))) continue;
      const mask = masks ? masks[problem] : -1;
      if (mask && candidates.some((model) => (mask >> bitOf(model)) & 1 && isWanted(model, problem))) places.push(problem);
    }
    return places;
  }

  const bitOf = (model) => Math.min(1 + state.index.models[model], LAST_BIT);

  function sortPlaces(places) {
    const [from, to] = [Number(byId("from").value), Number(byId("to").value)];
    const gain = (problem) => shareOf(to, problem) - shareOf(from, problem) + scoreOf(to, problem) - scoreOf(from, problem);
    const keys = {
      gained: (problem) => -gain(problem),
      lost: gain,
      easy: (problem) => -shareOf(to, problem) - scoreOf(to, problem),
      hard: (problem) => shareOf(to, problem) + scoreOf(to, problem),
    };
    const key = keys[byId("sort").value];
    if (!key) return places;
    const values = new Map(places.map((problem) => [problem, key(problem)]));
    return places.sort((a, b) => values.get(a) - values.get(b) || a - b);
  }

  // ---- list --------------------------------------------------------------------------------------------------------

  function showList() {
    const { places, page } = state;
    const pages = Math.max(1, Math.ceil(places.length / PAGE_SIZE));
    const shown = places.slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
    byId("items").replaceChildren(...shown.map(makeItem));
    const count = state.index.ids.length;
    byId("found").textContent =
      places.length === count ? `${count} problems` : `${places.length} of ${count} problems`;
    byId("pages").textContent = `Page ${page + 1} of ${pages}`;
    byId("earlier").disabled = page === 0;
    byId("later").disabled = page + 1 >= pages;
  }

  function makeItem(problem) {
    const { ids, heads, models } = state.index;
    const strips = make("span", { className: "strips" }, [...models.keys()].map((model) => makeStrip(model, problem)));
    const button = make(
      "button",
      { type: "button", onclick: () => openProblem(problem) },
      make("span", { className: "id" }, ids[problem]),
      make("span", { className: "head" }, heads[problem]),
      strips,
    );
    button.dataset.problem = problem;
    if (problem === state.open) button.setAttribute("aria-current", "true");
    return make("li", {}, button);
  }

  /** One model's verdicts on a problem: the greedy one as a mark, samples as a bar. */
  function makeStrip(model, problem) {
    const { verdicts, models, greedy, counts } = state.index;
    const total = samplesOf(model, problem);
    const name = `M_${models[model]}`;
    const said = [name];
    const strip = make("span", { className: "strip", role: "img" }, make("span", { className: "name" }, name));
    if (greedy[model][problem] >= 0) {
      const verdict = verdicts[greedy[model][problem]];
      strip.append(make("span", { className: `mark v-${verdict}` }, MARKS[verdict]));
      said.push(`greedy ${verdict}`);
    }
    if (total) {
      const bar = make("span", { className: "bar" });
      verdicts.forEach((verdict, place) => {
        const part = make("span", { className: `v-${verdict}` });
        part.style.flexGrow = counts[model][place][problem];
        if (counts[model][place][problem]) bar.append(part);
      });
      strip.append(bar);
      said.push(`${counts[model][0][problem]} of ${total} samples correct`);
    }
    strip.setAttribute("aria-label", `${said.join(", ")}.`);
    strip.title = said.join(", ");
    return strip;
  }

  function turnPage(by) {
    state.page += by;
    showList();
    byId("items").querySelector("button")?.focus({ preventScroll: true });
    byId("list").scrollIntoView({ block: "nearest" });
  }

  // ---- one problem -------------------------------------------------------------------------------------------------

  async function openProblem(problem, { focus = true, record = true } = {}) {
    const shard = lastNotAbove(state.index.shards, problem);
    const split = state.split;
    const found = (await load(`${split}-${pad(shard)}`))[problem - state.index.shards[shard]];
    if (split !== state.split) return;
    Object.assign(state, { open: problem, problem: found, only: "all" });
    const present = modelsOf(found);
    if (!present.includes(state.model)) state.model = present.at(-1);
    const wanted = byId("model").value;
    if (wanted !== "any" && present.includes(state.index.models[wanted])) state.model = state.index.models[wanted];
    byId("problems").classList.add("has-problem");
    markOpenItem();
    showProblem();
    if (record) history.pushState(null, "", hashOf(problem));
    if (focus) byId("problem-title").focus();
  }

  const modelsOf = (problem) => Object.keys(problem.models).map(Number);
  const hashOf = (problem) => `#problem/${state.split}/${encodeURIComponent(state.index.ids[problem])}`;

  function markOpenItem() {
    for (const button of byId("items").querySelectorAll("button")) {
      if (Number(button.dataset.problem) === state.open) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  function closeProblem({ record = true } = {}) {
    const before = state.open;
    state.open = null;
    byId("problems").classList.remove("has-problem");
    byId("problem").replaceChildren(make("p", { className: "hint" }, "Choose a problem to see what each model wrote."));
    markOpenItem();
    if (record) history.pushState(null, "", "#problems");
    byId("items").querySelector(`[data-problem="${before}"]`)?.focus();
  }

  function showProblem() {
    const { problem, index } = state;
    const place = state.places.indexOf(state.open);
    const step = (by, name) =>
      make("button", {
        type: "button",
        textContent: name,
        disabled: place < 0 || !(place + by in state.places),
        onclick: () => openProblem(state.places[place + by]),
      });
    fill(
      byId("problem"),
      make(
        "div",
        { className: "problem-head" },
        make("h3", { id: "problem-title", tabIndex: -1 }, problem.id),
        step(-1, "Previous"),
        step(1, "Next"),
        make("button", { type: "button", className: "close", textContent: "All problems", onclick: () => closeProblem() }),
      ),
      problem.question === null
        ? make("p", { className: "hint" }, "The task's problem file was not there when this page was made.")
        : make("pre", { className: "question" }, problem.question),
      make("p", {}, "Gold answer: ", make("b", { className: "gold" }, problem.gold)),
      problem.prompt === null ? null : fold("Prompt", () => make("pre", {}, index.prompt_before + problem.prompt + index.prompt_after)),
      problem.solution ? fold("Worked solution of the data", () => make("pre", {}, problem.solution)) : null,
      makeAnswersTable(),
      make("div", { id: "candidates" }),
    );
    showCandidates();
  }

  /** A fold whose content is made when it is opened. */
  function fold(title, makeContent, properties = {}) {
    const details = make("details", properties, make("summary", {}, title));
    details.addEventListener("toggle", () => details.append(makeContent()), { once: true });
    return details;
  }

  const candidatesOf = (model) =>
    state.problem.models[model].candidates.map((row) => Object.fromEntries(row.map((value, i) => [FIELDS[i], value])));

  const markOf = (verdict) => make("span", { "aria-hidden": "true" }, MARKS[verdict], " ");
  const badge = (verdict) => make("span", { className: `badge v-${verdict}` }, markOf(verdict), verdict);
  const answerText = (answer) => (answer === null ? "none" : answer);

  /** An answer in the colour of its verdict; the verdict itself for those who do not see it. */
  const makeChip = ({ verdict, answer }, rest = "") =>
    make(
      "span",
      { className: `chip v-${verdict}`, title: verdict },
      markOf(verdict),
      make("span", { className: "said" }, `${verdict} `),
      `${answerText(answer)}${rest}`,
    );

  /** The same problem's answers over the models. */
  function makeAnswersTable() {
    const rows = modelsOf(state.problem).map((model) => {
      const candidates = candidatesOf(model);
      const greedy = candidates.find((candidate) => candidate.kind === "greedy");
      const samples = candidates.filter((candidate) => candidate.kind === "sample");
      const correct = samples.filter((candidate) => candidate.verdict === "correct").length;
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, `M_${model}`),
        make("td", {}, greedy ? makeChip(greedy) : "–"),
        make("td", {}, samples.length ? `${correct} of ${samples.length}` : "–"),
        make("td", { className: "answers" }, countAnswers(samples)),
      );
    });
    const head = ["model", "greedy", "correct", "answers"];
    return make(
      "div",
      { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Answers by model" },
      make(
        "table",
        {},
        make("caption", {}, "Answers by model"),
        make("thead", {}, make("tr", {}, head.map((name) => make("th", { scope: "col", className: name === "answers" ? name : "" }, name)))),
        make("tbody", {}, rows),
      ),
    );
  }

  function countAnswers(samples) {
    const counts = new Map();
    for (const { verdict, answer } of samples) {
      const key = JSON.stringify([verdict, answer]);
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    const sorted = [...counts].sort((a, b) => b[1] - a[1]);
    const chips = sorted.slice(0, SHOWN_ANSWERS).map(([key, count]) => {
      const [verdict, answer] = JSON.parse(key);
      return [makeChip({ verdict, answer }, ` ×${count}`), " "];
    });
    return sorted.length > SHOWN_ANSWERS ? [...chips.flat(), `and ${sorted.length - SHOWN_ANSWERS} more`] : chips.flat();
  }

  function showCandidates() {
    const { problem, model } = state;
    const candidates = candidatesOf(model);
    const verdicts = state.index.verdicts.filter((verdict) => candidates.some((c) => c.verdict === verdict));
    const choices = ["all", ...verdicts, ...(state.words.length ? ["found"] : [])];
    if (!choices.includes(state.only)) state.only = "all";
    const isFound = (candidate) => holdsAll(candidate.text, state.words);
    const tests = { all: () => true, found: isFound };
    const chosen = (name) => candidates.filter(tests[name] ?? ((candidate) => candidate.verdict === name));
    const buttons = choices.map((name) =>
      make(
        "button",
        {
          type: "button",
          "aria-pressed": String(name === state.only),
          onclick: () => ((state.only = name), showCandidates(), byId(`only-${name}`).focus()),
          id: `only-${name}`,
        },
        `${name === "found" ? "with the words searched" : name} ${chosen(name).length}`,
      ),
    );
    const { pairs } = problem.models[model];
    fill(
      byId("candidates"),
      makeTabs(),
      make(
        "div",
        { id: "panel", role: "tabpanel", "aria-labelledby": `tab-${model}` },
        make("div", { className: "choices", role: "group", "aria-label": "Which completions" }, buttons),
        chosen(state.only).map((candidate) => makeCandidate(candidate, pairs)),
        pairs.length ? makePairs(pairs, candidates) : null,
      ),
    );
  }

  function makeTabs() {
    const models = modelsOf(state.problem);
    const select = (model) => {
      state.model = model;
      showCandidates();
      byId(`tab-${model}`).focus({ preventScroll: true });
    };
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -models.length, End: models.length };
    const onkeydown = (event) => {
      if (!(event.key in moves)) return;
      event.preventDefault();
      const place = models.indexOf(state.model) + moves[event.key];
      select(models[Math.min(models.length - 1, Math.max(0, place))]);
    };
    const tabs = models.map((model) =>
      make(
        "button",
        {
          type: "button",
          role: "tab",
          id: `tab-${model}`,
          "aria-selected": String(model === state.model),
          "aria-controls": "panel",
          tabIndex: model === state.model ? 0 : -1,
          onclick: () => select(model),
          onkeydown,
        },
        `M_${model}`,
      ),
    );
    return make("div", { role: "tablist", className: "tabs", "aria-label": "Model" }, tabs);
  }

  const nameOf = (key) => key.replace("/", " ");

  function makeCandidate(candidate, pairs) {
    const key = `${candidate.kind}/${candidate.index}`;
    const facts = [
      `answer ${answerText(candidate.answer)}`,
      `rule ${candidate.layer}`,
      `${candidate.tokens} tokens`,
      { length: "cut off", failed: "not drawn" }[candidate.finish],
      candidate.second === null ? null : `second grader: ${candidate.second}`,
    ];
    const against = (mine, other) => [...new Set(pairs.filter((pair) => pair[mine] === key).map((pair) => nameOf(pair[other])))];
    const uses = [
      ["chosen over", against(0, 1)],
      ["rejected against", against(1, 0)],
    ];
    return make(
      "article",
      { className: "candidate", id: `candidate-${candidate.kind}-${candidate.index}` },
      make("h4", {}, nameOf(key), " ", badge(candidate.verdict)),
      make("p", { className: "facts" }, facts.filter(Boolean).join(" · ")),
      make("pre", {}, highlight(candidate.text, state.words)),
      uses
        .filter(([, others]) => others.length)
        .map(([how, others]) => make("p", { className: "facts" }, `In pairs, ${how} ${others.join(", ")}`)),
    );
  }

  function makePairs(pairs, candidates) {
    const textOf = (key) => candidates.find((c) => `${c.kind}/${c.index}` === key)?.text ?? "";
    const side = (title, key) =>
      make("div", {}, make("h5", {}, `${title}: ${nameOf(key)}`), make("pre", {}, highlight(textOf(key), state.words)));
    const items = pairs.map(([chosen, rejected]) =>
      make(
        "li",
        {},
        fold(`${nameOf(chosen)} over ${nameOf(rejected)}`, () =>
          make("div", { className: "sides" }, side("Chosen", chosen), side("Rejected", rejected)),
        ),
      ),
    );
    return make("section", { className: "pairs" }, make("h4", {}, `Pairs (${pairs.length})`), make("ol", {}, items));
  }

  /** Whether a word of a text is the one searched at `place`; the last may be a beginning, as in findWord. */
  const isWanted = (word, wanted, place, words) =>
    word === wanted || (place === words.length - 1 && wanted.length >= MIN_BEGINNING && word.startsWith(wanted));

  const isSearched = (word, words) => words.some((wanted, place) => isWanted(word, wanted, place, words));

  function holdsAll(text, words) {
    const own = [...new Set(cutWords(text))];
    return words.every((wanted, place) => own.some((word) => isWanted(word, wanted, place, words)));
  }

  /** The text, with the words searched for in <mark>. */
  function highlight(text, words) {
    if (!words.length) return [text];
    return text
      .split(/([\p{L}\p{N}_]+)/u)
      .map((piece, place) => (place % 2 && isSearched(piece.toLowerCase(), words) ? make("mark", {}, piece) : piece));
  }

  // ---- the form ----------------------------------------------------------------------------------------------------

  const options = (pairs) => pairs.map(([value, text]) => make("option", { value, textContent: text }));

  async function openSplit(split) {
    state.split = split;
    state.index = await load(split);
    closeQuietly();
    const models = state.index.models.map((model, place) => [String(place), `M_${model}`]);
    const greedy = hasGreedy() ? state.index.verdicts.map((v) => [`greedy ${v}`, `greedy: ${v}`]) : [];
    const samples = [
      ["all", "samples: all correct"],
      ["some", "samples: some correct"],
      ["none", "samples: none correct"],
      ...state.index.verdicts.map((v) => [`sample ${v}`, `samples: one or more ${v}`]),
    ];
    const made = state.index.pairs.some((column) => column.some(Boolean)) ? [["pairs", "pairs were made"]] : [];
    byId("model").replaceChildren(...options([["any", "any model"], ...models]));
    byId("verdict").replaceChildren(...options([["any", "any verdict"], ...greedy, ...samples, ...made]));
    for (const id of ["from", "to"]) byId(id).replaceChildren(...options(models));
    byId("to").value = String(models.length - 1);
    byId("change-basis").textContent = hasGreedy() ? "Change, greedy" : "Change, samples";
    await update();
  }

  function closeQuietly() {
    state.open = null;
    state.model = null;
    byId("problems").classList.remove("has-problem");
    byId("problem").replaceChildren(make("p", { className: "hint" }, "Choose a problem to see what each model wrote."));
  }

  /** Show what the address names: #problem/<split>/<id>. */
  async function followAddress() {
    const [kind, split, id] = location.hash.slice(1).split("/");
    if (kind !== "problem") return state.open === null ? undefined : closeProblem({ record: false });
    if (split !== state.split && [...byId("split").options].some((option) => option.value === split)) {
      byId("split").value = split;
      await openSplit(split);
    }
    const problem = state.index.ids.indexOf(decodeURIComponent(id));
    if (problem >= 0) await openProblem(problem, { record: false });
    return undefined;
  }

  const guarded = (action) => (event) =>
    Promise.resolve(action(event)).catch((error) => {
      byId("found").textContent = error.message;
      byId("list").setAttribute("aria-busy", "false");
    });

  function moveInList(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...byId("items").querySelectorAll("button")];
    const target = by && buttons[buttons.indexOf(document.activeElement) + by];
    if (!target) return;
    event.preventDefault();
    target.focus();
  }

  function startBrowser() {
    const form = byId("filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    byId("query").addEventListener("input", guarded(update));
    for (const select of form.querySelectorAll("select")) {
      select.addEventListener("change", guarded(() => (select.id === "split" ? openSplit(select.value) : update())));
    }
    form.addEventListener("reset", () => setTimeout(guarded(() => openSplit(byId("split").value))));
    byId("earlier").onclick = () => turnPage(-1);
    byId("later").onclick = () => turnPage(1);
    byId("items").addEventListener("keydown", moveInList);
    addEventListener("popstate", guarded(followAddress));
    guarded(async () => {
      await openSplit(byId("split").value);
      performance.mark("browser-ready");
      await followAddress();
    })();
  }

  /** Switch between the light and the dark page; the system's choice holds until somebody does. */
  function startTheme() {
    const isDark = () =>
      (document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) ===
      "dark";
    byId("theme").onclick = () => (document.documentElement.style.colorScheme = isDark() ? "light" : "dark");
  }

  startTheme();
  if (byId("filters")) requestAnimationFrame(() => setTimeout(startBrowser));
  return { add };
})();
