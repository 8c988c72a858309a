// Draws the charts of a report from the data in it, and makes its tables sortable. No formula of a law is here.

const DATA = JSON.parse(document.getElementById('data').textContent);
const PANEL = 300; // pixels that a panel should have at least
const FAINT = 'var(--faint)';

// Parts of pages.

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function choice(label, options, onChange) {
  const select = element('select', {}, ...options.map((text, i) => element('option', {value: i}, text)));
  select.addEventListener('change', () => onChange(Number(select.value)));
  return element('label', {}, label, select);
}

function legend(entries) {
  const sample = ({look}) => {
    const {color, symbol} = lookOf(look);
    const dot = Plot.dot([[0, 0]], {fill: color, stroke: color, symbol, r: 4.5});
    return Plot.plot({width: 14, height: 14, margin: 2, axis: null, marks: [dot]});
  };
  return element('div', {class: 'legend'}, ...entries.map((each) => element('span', {}, sample(each), each.label)));
}

// Parts of charts.

const lookOf = (look) => (look === null ? {color: FAINT, symbol: 'circle'} : DATA.looks[look % DATA.looks.length]);
const colorOf = (look) => lookOf(look).color;

function logScale({title, domain, ticks}) {
  const labels = new Map(ticks.map(({value, label}) => [value, label]));
  const label = {label: title, labelArrow: 'none', labelAnchor: 'center'};
  return {type: 'log', domain, ...label, ticks: [...labels.keys()], tickFormat: (value) => labels.get(value)};
}

const linearScale = (label, rest = {}) => ({label, labelArrow: 'none', ticks: 5, ...rest});

function dots(points, x, y) {
  const look = {fill: (d) => colorOf(d.look), stroke: (d) => colorOf(d.look), symbol: (d) => lookOf(d.look).symbol};
  const r = (d) => (d.look === null ? 2 : 3.5);
  return Plot.dot(points, {x, y, ...look, fillOpacity: 0.75, strokeWidth: 0.5, r: {value: r, scale: null}, clip: true});
}

// A chart, and beside the pointer the text of the nearest of its points, named by [points, x, y].
function chart(width, {named: [points, x, y], marks, ...options}) {
  const height = Math.min(340, Math.max(230, 0.8 * width));
  const frame = {width, height, marginLeft: 58, marginRight: 12, marginBottom: 40};
  const ring = Plot.dot(points, Plot.pointer({x, y, stroke: 'var(--ink)', r: 7, maxRadius: 40}));
  const style = {fontSize: '12px', background: 'none'};
  const svg = Plot.plot({...frame, grid: true, style, ...options, marks: [...marks, ring]});
  const note = element('div', {class: 'note', hidden: ''});
  svg.addEventListener('input', () => {
    const point = svg.value;
    note.hidden = !point;
    if (!point) return;
    note.textContent = point.text;
    const [left, top] = [svg.scale('x').apply(point[x]), svg.scale('y').apply(point[y])];
    note.style.left = `${Math.max(0, Math.min(left - note.offsetWidth / 2, width - note.offsetWidth))}px`;
    note.style.top = `${top + 14}px`;
  });
  return element('div', {class: 'chart'}, svg, note);
}

function panels(width, each) {
  const most = each.length === 4 ? 2 : 3;
  const columns = Math.max(1, Math.min(each.length, most, Math.floor((width + 16) / (PANEL + 16))));
  const size = Math.floor((width - 16 * (columns - 1)) / columns);
  return element('div', {class: 'panels'}, ...each.map(({title, draw}) => {
    return element('div', {style: `width: ${size}px`}, ...(title ? [element('h5', {}, title)] : []), draw(size));
  }));
}

// Charts: from the data of a law, and what draws anew, to controls and a function of the width.

function tokens(law, redraw) {
  const {panels: all, groups, title, domain} = law.tokens;
  const chosen = {group: groups[0], x: 'D'};
  const controls = [choice('over', ['tokens D', 'compute C'], (i) => ((chosen.x = 'DC'[i]), redraw()))];
  if (groups.length > 1) controls.unshift(choice('', groups, (i) => ((chosen.group = groups[i]), redraw())));
  const shown = (each) => !each.group || each.group === chosen.group;
  const panel = ({title: name, curves, points, axes}) => ({
    title: name,
    draw(width) {
      const {x} = chosen;
      const of = curves.filter(shown);
      const runs = points.filter(shown);
      const turns = of.filter(({turn}) => turn).map(({turn}) => turn);
      const path = (curve, inside) => {
        const is = (i) => curve.inside[i] === inside;
        const keep = (i) => is(i) || (!inside && (is(i - 1) || is(i + 1))); // the dashed part meets the other
        return curve.y.map((y, i) => [curve[x][i], keep(i) && y !== null ? y : NaN]);
      };
      const bands = of.filter(({band}) => band).map((curve) => {
        const rows = curve[x].map((at, i) => [at, curve.band[0][i] ?? NaN, curve.band[1][i] ?? NaN]);
        return Plot.areaY(rows, {x: '0', y1: '1', y2: '2', fill: colorOf(curve.look), fillOpacity: 0.13, clip: true});
      });
      const lines = of.flatMap((curve) => [
        Plot.line(path(curve, false), {stroke: colorOf(curve.look), strokeDasharray: '2 4', clip: true}),
        Plot.line(path(curve, true), {stroke: colorOf(curve.look), strokeWidth: 2, clip: true}),
      ]);
      const zero = law.tokens.is_gap ? [Plot.ruleY([0], {stroke: FAINT})] : [];
      const marks = Plot.dot(turns, {x, y: 'y', symbol: 'triangle', rotate: 180, fill: 'var(--ink)', r: 5});
      return chart(width, {
        x: logScale(axes[x]),
        y: linearScale(title, {domain}),
        marks: [...zero, ...bands, ...lines, dots(runs, x, 'y'), marks],
        named: [[...runs, ...turns], x, 'y'],
      });
    },
  });
  const entries = () => {
    const visible = all.flatMap(({curves, points}) => [...curves, ...points]).filter(shown);
    return law.tokens.legend.filter(({look}) => visible.some((each) => each.look === look));
  };
  return {controls, draw: (width) => [legend(entries()), panels(width, all.map(panel))]};
}

function costs(law, redraw) {
  const {costs: all, settings, sizes, axis, domain, near, columns, start} = law.costs;
  const chosen = {setting: 0, cost: start};
  const slider = element('input', {type: 'range', min: 0, max: all.length - 1, value: start, 'aria-label': 'cost'});
  const said = element('output', {});
  slider.addEventListener('input', () => ((chosen.cost = Number(slider.value)), redraw()));
  const controls = [element('label', {class: 'slider'}, said, slider)];
  const names = settings.map(({name}) => name);
  if (names.length > 1) controls.push(choice('curves of', names, (i) => ((chosen.setting = i), redraw())));
  const draw = (width) => {
    const setting = settings[chosen.setting];
    const k = chosen.cost;
    const curve = (i) => setting.curves[i].map((loss, j) => [sizes[j], loss ?? NaN]);
    const best = setting.N.map((N, i) => [N ?? NaN, setting.loss[i] ?? NaN]);
    const inside = ([N, loss]) => N >= axis.domain[0] && N <= axis.domain[1] && loss <= domain[1];
    const others = all.map((_, i) => i).filter((i) => i % 8 === 0 && setting.N[i]);
    const runs = setting.points.filter(({C}) => Math.abs(Math.log(C / all[k].value)) <= Math.log(near));
    said.textContent = all[k].label;
    slider.setAttribute('aria-valuetext', all[k].label);
    const picture = chart(width, {
      height: Math.min(420, Math.max(280, 0.6 * width)),
      x: logScale(axis),
      y: linearScale('loss (nats a token)', {domain}),
      marks: [
        ...others.map((i) => Plot.line(curve(i), {stroke: FAINT, strokeOpacity: 0.6, clip: true})),
        Plot.line(best, {stroke: colorOf(1), strokeDasharray: '5 4', clip: true}),
        ...(setting.N[k] ? [Plot.line(curve(k), {stroke: colorOf(0), strokeWidth: 3, clip: true})] : []),
        Plot.dot([best[k]].filter(inside), {fill: colorOf(1), r: 6}),
        Plot.dot(setting.points, {x: 'N', y: 'loss', fill: FAINT, fillOpacity: 0.35, r: 2, clip: true}),
        Plot.dot(runs, {x: 'N', y: 'loss', fill: colorOf(0), r: 4, clip: true}),
      ],
      named: [setting.points, 'N', 'loss'],
    });
    const rows = settings.map(({readout}, i) => {
      const cells = readout[k].map((text) => element('td', {}, text));
      return element('tr', i === chosen.setting && settings.length > 1 ? {class: 'chosen'} : {}, ...cells);
    });
    const head = element('thead', {}, element('tr', {}, ...columns.map((text) => element('th', {scope: 'col'}, text))));
    const table = element('table', {'aria-label': 'best at this cost'}, head, element('tbody', {}, ...rows));
    return [picture, element('div', {class: 'wide', 'aria-live': 'polite'}, table)];
  };
  return {controls, draw};
}

function residuals(law) {
  const {points, axes, noise, legend: entries} = law.residuals;
  const panel = (name) => ({
    draw: (width) => {
      const band = noise ? [Plot.ruleY([noise, -noise], {stroke: FAINT, strokeDasharray: '4 3'})] : [];
      return chart(width, {
        x: logScale(axes[name]),
        y: linearScale('loss less prediction (nats)', {inset: 8}),
        marks: [Plot.ruleY([0], {stroke: FAINT}), ...band, dots(points, name, 'residual')],
        named: [points, name, 'residual'],
      });
    },
  });
  const about = noise ? [element('p', {}, 'The dashed lines are the noise of the seeds, one standard deviation.')] : [];
  const shown = entries.length > 1 ? [legend(entries)] : [];
  return {controls: [], draw: (width) => [...shown, panels(width, Object.keys(axes).map(panel)), ...about]};
}

function curvesWithBands(curves) {
  const known = (values) => values.map((value) => value ?? NaN);
  const ring = (points, look) => Plot.dot(points, {x: 'x', y: 'y', stroke: colorOf(look), strokeWidth: 1.5, r: 6});
  const area = ([low, high], x, look) =>
    Plot.areaY(x, {x, y1: known(low), y2: known(high), fill: colorOf(look), fillOpacity: 0.15, clip: true});
  const marks = curves.flatMap(({look, x, y, band, points}, i) => [
    ...(band ? [area(band, x, look)] : []),
    Plot.line(x, {x, y: known(y), stroke: colorOf(look), strokeWidth: 2, clip: true}),
    i ? dots(points.map((point) => ({...point, look})), 'x', 'y') : ring(points, look), // both are seen in one place
  ]);
  return {marks, named: [curves.flatMap(({points}) => points), 'x', 'y']};
}

function layout(law) {
  const {curves} = law.bits.layout;
  const x = linearScale('bits P = 1 + E + M', {ticks: 7, labelAnchor: 'center', inset: 8});
  const picture = (width) => chart(Math.min(width, 640), {x, y: linearScale('bits'), ...curvesWithBands(curves)});
  const draw = (width) => [legend(curves), picture(width)];
  return {controls: [], draw};
}

function precision(law) {
  const {curves, axis, domain, marked, runs} = law.bits.precision;
  const {marks, named} = curvesWithBands(curves);
  const draw = (width) => [
    legend(curves),
    chart(Math.min(width, 640), {
      x: logScale(axis),
      y: linearScale('best P (bits)', {domain}),
      marks: [
        Plot.areaY(runs, {x: runs, y1: domain[0], y2: domain[1], fill: 'var(--band)', fillOpacity: 0.6}),
        Plot.ruleY(marked, {stroke: FAINT, strokeDasharray: '5 4'}),
        ...marks,
      ],
      named,
    }),
  ];
  return {controls: [], draw};
}

function hardware(law) {
  const {points, options} = law.hardware;
  const names = [...new Set(points.map((each) => each.hardware))];
  const draw = (width) => [
    legend(options),
    chart(width, {
      height: 60 + 34 * names.length,
      marginLeft: 12 + 7 * Math.max(...names.map((name) => name.length)),
      x: linearScale('loss (nats a token)', {labelAnchor: 'center', ticks: Math.max(3, width / 110), inset: 8}),
      y: {type: 'point', domain: names, label: null},
      marks: [dots(points, 'loss', 'hardware')],
      named: [points, 'loss', 'hardware'],
    }),
  ];
  return {controls: [], draw};
}

const CHARTS = {tokens, costs, residuals, layout, precision, hardware};

function start(figure) {
  const area = element('div');
  const {controls, draw} = CHARTS[figure.dataset.chart](DATA.laws[figure.dataset.law], () => redraw());
  const redraw = () => area.clientWidth && area.replaceChildren(...draw(area.clientWidth));
  figure.replaceChildren(element('div', {class: 'controls'}, ...controls), area);
  let width = 0;
  new ResizeObserver(() => {
    if (area.clientWidth !== width) {
      width = area.clientWidth;
      redraw();
    }
  }).observe(area);
}

// Tables, sorted by a click on a column's name: numbers by what they are, what is unknown last.

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) return;
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = element('button', {type: 'button'}, head.textContent);
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const falls = head.getAttribute('aria-sort') === 'ascending';
      const numeric = [...body.rows].some((row) => row.cells[column].dataset.sort !== undefined);
      const key = ({cells}) => (numeric ? Number(cells[column].dataset.sort ?? NaN) : cells[column].textContent);
      const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, 'en', {numeric: true}));
      const rows = [...body.rows].map((row) => [key(row), row]);
      const known = rows.filter(([value]) => !Number.isNaN(value)).sort(([a], [b]) => (falls ? -1 : 1) * compare(a, b));
      body.append(...[...known, ...rows.filter(([value]) => Number.isNaN(value))].map(([, row]) => row));
      heads.forEach((each) => each.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', falls ? 'descending' : 'ascending');
    });
  });
}

document.querySelectorAll('figure[data-chart]').forEach(start);
document.querySelectorAll('section table').forEach((table) => table.closest('figure') || sortable(table));
