// Writing to the page: text as text, and only what changed, so that 200 rows a second cost little and a selection,
// a focus or a screen reader's place survives. Nothing here, nor anywhere in these files, takes markup.

export const $ = (id) => document.getElementById(id);

export function setText(node, text) {
  const wanted = text == null ? "" : String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function setAttr(node, name, value) {
  if (value == null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

// The badge of a state: the word says it, the glyph (by style sheet, from data-tone) and the colour repeat it.
export function setBadge(node, tone, word) {
  setAttr(node, "data-tone", tone);
  setText(node, word);
}

// Rows of a table or a list, one element for each key, made once from a template and updated in place.
export class Rows {
  // update(fields, item, row): writes the item; begin(fields, row): once, for listeners, which read row.item.
  constructor(container, templateId, update, begin = () => {}) {
    this.container = container;
    this.template = $(templateId).content.firstElementChild;
    this.update = update;
    this.begin = begin;
    this.rows = new Map();
  }

  // entries: [key, item] in the order wanted. keepOrder: rows that are there stay where they are.
  render(entries, keepOrder = false) {
    const wanted = new Map(entries);
    for (const [key, row] of this.rows) {
      if (!wanted.has(key)) {
        row.element.remove();
        this.rows.delete(key);
      }
    }
    let place = null;
    for (const [key, item] of wanted) {
      let row = this.rows.get(key);
      const isNew = row === undefined;
      if (isNew) row = this.make(key);
      row.item = item;
      this.update(row.fields, item, row);
      if (isNew || !keepOrder) {
        const next = place === null ? this.first() : place.nextElementSibling;
        if (next !== row.element) this.container.insertBefore(row.element, next);
      }
      place = row.element;
    }
  }

  first() {
    // a table's caption and head stay before its rows
    const fixed = [...this.container.children].filter((child) => child.matches("caption, thead"));
    return fixed.length ? fixed.at(-1).nextElementSibling : this.container.firstElementChild;
  }

  make(key) {
    const element = this.template.cloneNode(true);
    const fields = {};
    for (const node of element.querySelectorAll("[data-f]")) fields[node.dataset.f] = node;
    const row = { key, element, fields, item: null };
    this.rows.set(key, row);
    this.begin(fields, row);
    return row;
  }
}

// A step chart of counts in a 60 x 20 box: one attribute to write.
export function drawCounts(path, counts) {
  const last = (counts ?? []).slice(-60);
  const top = Math.max(1, ...last);
  let d = "";
  last.forEach((count, i) => {
    const height = (count / top) * 19;
    if (height > 0) d += `M${60 - last.length + i} 20v${-Math.max(height, 1).toFixed(1)}h.8V20z`;
  });
  setAttr(path, "d", d);
}
