"use strict";
// The page's own script: values under the pointer of the timeline, and the tree of answers, of which no more is unpacked
// or drawn than is looked at. Texts of others only ever become text nodes.

const PAGE_SIZE = 50; // rows that are drawn at a time
const CACHED_CHUNKS = 24;
const LABEL_CHARS = 160;
const number = new Intl.NumberFormat("en-US");
const $ = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// ---- the timeline

function followTimeline() {
  const timeline = document.querySelector(".timeline");
  if (!timeline) return;
  const points = JSON.parse($("points").textContent);
  const last = points.end_s.length - 1;
  if (last < 0) return;
  const total = points.end_s[last];
  const now = $("steps-now");
  let current = -1;

  function show(at) {
    current = Math.min(Math.max(at, 0), last);
    const begin = current ? points.end_s[current - 1] : 0;
    const x = `${(50 * (begin + points.end_s[current])) / total}%`;
    for (const cursor of timeline.querySelectorAll(".cursor")) {
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", "visible");
    }
    const steps = points.steps[current];
    now.textContent =
      `${begin.toFixed(2)} to ${points.end_s[current].toFixed(2)} s` +
      (steps > 1 ? `, ${number.format(steps)} steps` : "") +
      `: ${number.format(points.prefill[current])} prefill and ${number.format(points.decode[current])} decode ` +
      `tokens per step, ${number.format(points.kv[current])} KV tokens`;
  }

  function pointAt(seconds) {
    let [low, high] = [0, last];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (points.end_s[middle] > seconds) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  function hide() {
    now.textContent = "\u00a0";
    for (const cursor of timeline.querySelectorAll(".cursor")) cursor.setAttribute("visibility", "hidden");
  }

  timeline.addEventListener("pointermove", (event) => {
    const box = timeline.getBoundingClientRect();
    show(pointAt(((event.clientX - box.left) / box.width) * total));
  });
  timeline.addEventListener("pointerleave", hide);
  timeline.addEventListener("blur", hide);
  timeline.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(moves[event.key]);
  });
}

// ---- rows: a prefix is [text, number of prompts]; a prompt is
// [text, custom_id, line, [[text, finish reason], ...], [prompt tokens, saved, output tokens], error]

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

let sizes = []; // of each row: itself and the rows below it
let chunkBegins = [];
const chunks = new Map(); // those used of late, the latest last

function chunkRows(chunk) {
  const rows = chunks.get(chunk) ?? inflate($(`chunk-${chunk}`).textContent);
  chunks.delete(chunk);
  chunks.set(chunk, rows);
  if (chunks.size > CACHED_CHUNKS) chunks.delete(chunks.keys().next().value);
  return rows;
}

async function rowContent(row) {
  let [low, high] = [0, chunkBegins.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (chunkBegins[middle] <= row) low = middle;
    else high = middle - 1;
  }
  return (await chunkRows(low))[row - chunkBegins[low]];
}

function childRows(begin, end) {
  const children = [];
  for (let row = begin; row < end; row += sizes[row]) children.push(row);
  return children;
}

const isPrefix = (row) => sizes[row] > 1;

// ---- what is drawn of them

function textBlock(tag, className, text) {
  const block = document.createDocumentFragment();
  const element = make(tag, `text ${className}`, text);
  element.dir = "auto";
  block.append(element);
  if (text.length > 1200 || text.split("\n").length > 12) {
    element.classList.add("long");
    const button = make("button", className === "prefix-text" ? "prefix-text" : "", "Show all");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const isLong = element.classList.toggle("long");
      button.textContent = isLong ? "Show all" : "Show less";
      button.setAttribute("aria-expanded", String(!isLong));
    });
    block.append(button);
  }
  return block;
}

function prefixItem(row, [text, numPrompts]) {
  const item = make("li");
  const details = make("details");
  details.id = `row-${row}`;
  const summary = make("summary");
  const label = make("span", "label", text.slice(0, 4 * LABEL_CHARS).replace(/\s+/g, " ").slice(0, LABEL_CHARS));
  label.dir = "auto";
  summary.append(label, make("span", "count", `${number.format(numPrompts)} prompts`));
  details.append(summary);
  details.openRows = async () => {
    details.openRows = async () => {};
    details.append(textBlock("p", "prefix-text", text.trim()));
    const list = make("ol");
    details.append(list);
    await draw(list, childRows(row + 1, row + sizes[row]));
  };
  details.addEventListener("toggle", () => details.open && details.openRows());
  item.append(details);
  return item;
}

function answerItem(row, [text, customId, line, completions, tokens, error], inTree) {
  const item = make("li", "answer");
  if (inTree) item.id = `row-${row}`;
  if (text.trim()) item.append(textBlock("p", "question", text.trim()));
  for (const [answer] of completions) item.append(textBlock("p", "completion", answer.trim() || "(empty)"));
  if (error) item.append(make("p", "text error", error));
  const reasons = [...new Set(completions.map(([, reason]) => reason).filter(Boolean))];
  const facts = [customId, ...(line ? [`line ${number.format(line)}`] : []), ...reasons];
  if (tokens) {
    facts.push(`${number.format(tokens[0])} prompt tokens, ${number.format(tokens[1])} saved`);
    facts.push(`${number.format(tokens[2])} output tokens`);
  }
  const meta = make("p", "meta", facts.join(" · "));
  item.append(meta);
  if (!inTree) {
    const link = make("a", "", "in the tree");
    link.href = `#row-${row}`;
    meta.append(" · ", link);
  }
  return item;
}

async function rowItem(row, inTree) {
  const content = await rowContent(row);
  return isPrefix(row) ? prefixItem(row, content) : answerItem(row, content, inTree);
}

// A page of rows, and a button for the next.
async function draw(list, rows, begin = 0) {
  const end = begin + PAGE_SIZE;
  const items = await Promise.all(rows.slice(begin, end).map((row) => rowItem(row, true)));
  list.append(...items);
  list.drawMore = undefined;
  if (end >= rows.length) return;
  const item = make("li");
  const left = rows.length - end;
  const button = make("button", "", `Show ${number.format(Math.min(PAGE_SIZE, left))} more of ${number.format(left)}`);
  button.type = "button";
  list.drawMore = () => {
    item.remove();
    return draw(list, rows, end);
  };
  button.addEventListener("click", async () => {
    await list.drawMore();
    list.children[end]?.querySelector("summary, button, a")?.focus();
  });
  item.append(button);
  list.append(item);
}

// Opens the prefixes above a row, and the pages of them that it is on.
async function reveal(target) {
  let [list, begin, end] = [$("tree"), 0, sizes.length];
  while (begin < end) {
    const children = childRows(begin, end);
    const row = children.find((child) => target < child + sizes[child]);
    while (!$(`row-${row}`) && list.drawMore) {
      await list.drawMore();
      await new Promise(requestAnimationFrame);
    }
    const element = $(`row-${row}`);
    if (isPrefix(row)) {
      await element.openRows();
      element.open = true;
      list = element.querySelector(":scope > ol");
    }
    if (row === target) {
      for (const other of document.querySelectorAll(".target")) other.classList.remove("target");
      element.classList.add("target");
      for (let tries = 0; tries < 8; tries += 1) {
        // Rows above it take their height only when they come into sight.
        element.scrollIntoView({ block: "start", behavior: "instant" });
        await new Promise(requestAnimationFrame);
      }
      element.querySelector("summary")?.focus({ preventScroll: true });
      return;
    }
    [begin, end] = [row + 1, row + sizes[row]];
  }
}

function followHash() {
  const match = /^#row-(\d+)$/.exec(location.hash);
  if (match && Number(match[1]) < sizes.length) {
    showTree();
    reveal(Number(match[1]));
  }
}

// ---- search

let searchNumber = 0; // of the latest; older ones end

function showTree() {
  searchNumber += 1;
  $("query").value = "";
  $("found").textContent = "";
  $("results").hidden = true;
  $("tree").hidden = false;
}

function holds(content, needle) {
  const texts = [content[0]];
  if (Array.isArray(content[3])) texts.push(content[1], content[5] ?? "", ...content[3].map(([text]) => text));
  return texts.some((text) => text.toLowerCase().includes(needle));
}

async function search(text) {
  const needle = text.trim().toLowerCase();
  if (!needle) return showTree();
  searchNumber += 1;
  const mine = searchNumber;
  const results = $("results");
  results.replaceChildren();
  results.hidden = false;
  $("tree").hidden = true;
  let [count, prefixes, drawn] = [0, 0, 0];
  let limit = PAGE_SIZE;
  for (let chunk = 0; chunk < chunkBegins.length; chunk += 1) {
    // Chunks that are only searched are not kept: those of the tree stay at hand.
    const rows = await (chunks.get(chunk) ?? inflate($(`chunk-${chunk}`).textContent));
    if (mine !== searchNumber) return;
    for (let i = 0; i < rows.length; i += 1) {
      if (!holds(rows[i], needle)) continue;
      const row = chunkBegins[chunk] + i;
      count += 1;
      if (isPrefix(row)) prefixes += 1;
      if (drawn < limit) {
        results.append(isPrefix(row) ? foundPrefix(row, rows[i]) : answerItem(row, rows[i], false));
        drawn += 1;
      }
    }
    const share = Math.round((100 * (chunk + 1)) / chunkBegins.length);
    if (drawn >= limit && chunk + 1 < chunkBegins.length) {
      $("found").textContent = `${number.format(count)} found in ${share} % of the job`;
      await new Promise((resolve) => {
        const item = make("li");
        const button = make("button", "", "Search on");
        button.type = "button";
        button.addEventListener("click", resolve);
        item.append(button);
        results.append(item);
      });
      results.lastChild.remove();
      limit = drawn + PAGE_SIZE;
    } else {
      $("found").textContent = `Searching: ${number.format(count)} found in ${share} %`;
    }
  }
  const shown = drawn < count ? `; the first ${number.format(drawn)} are shown` : "";
  const below = prefixes ? `, ${number.format(prefixes)} of them shared prefixes` : "";
  $("found").textContent = `${number.format(count)} found${below}${shown}`;
}

function foundPrefix(row, [text, numPrompts]) {
  const item = make("li", "answer");
  item.append(textBlock("p", "question", text.trim()));
  const meta = make("p", "meta", `shared by ${number.format(numPrompts)} prompts · `);
  const link = make("a", "", "open it in the tree");
  link.href = `#row-${row}`;
  meta.append(link);
  item.append(meta);
  return item;
}

async function start() {
  followTimeline();
  if (!("DecompressionStream" in window)) {
    $("found").textContent = "This browser cannot unpack the answers; one of 2023 or later can.";
    return;
  }
  [sizes, chunkBegins] = await inflate($("index").textContent);
  const top = childRows(0, sizes.length);
  await draw($("tree"), top);
  if (top.length === 1 && isPrefix(top[0])) $(`row-${top[0]}`).open = true;
  let timer = 0;
  $("query").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => search($("query").value), 200);
  });
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    search($("query").value);
  });
  window.addEventListener("hashchange", followHash);
  followHash();
}

start();
