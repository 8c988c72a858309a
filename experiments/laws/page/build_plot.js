// Bundles what report.js uses of Observable Plot into plot.js, below the licences of all packages in it.

import {build} from 'esbuild';
import {existsSync, readdirSync, readFileSync, writeFileSync} from 'node:fs';

const MARKS = ['areaY', 'dot', 'line', 'plot', 'pointer', 'ruleY'];

const {outputFiles, metafile} = await build({
  stdin: {contents: `export {${MARKS}} from '@observablehq/plot';`, resolveDir: '.'},
  bundle: true,
  minify: true,
  treeShaking: true,
  format: 'iife',
  globalName: 'Plot',
  charset: 'ascii',
  target: 'es2020',
  legalComments: 'none',
  metafile: true,
  write: false,
  outfile: 'plot.js',
});

const packages = new Set(
  Object.values(metafile.outputs)
    .flatMap(({inputs}) => Object.entries(inputs))
    .filter(([path, {bytesInOutput}]) => bytesInOutput && path.startsWith('node_modules/'))
    .map(([path]) => path.match(/.*node_modules\/((?:@[^/]+\/)?[^/]+)/).slice(0, 2).join('|'))
);
const byLicence = new Map();
for (const [folder, name] of [...packages].sort().map((each) => each.split('|'))) {
  const {version, license} = JSON.parse(readFileSync(`${folder}/package.json`));
  const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
  const text = file && existsSync(`${folder}/${file}`) ? readFileSync(`${folder}/${file}`, 'utf8').trim() : license;
  byLicence.set(text, [...(byLicence.get(text) ?? []), `${name} ${version}`]);
}
const notices = [...byLicence].map(([text, names]) => `${names.join(', ')}\n\n${text}`).join('\n\n---\n\n');
const banner = `Built by build_plot.js; do not edit. Contains:\n\n${notices}`.replaceAll('*/', '* /');
writeFileSync('plot.js', `/*!\n${banner}\n*/\n${outputFiles[0].text}`);
