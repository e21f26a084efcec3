-- depends: 0050_redraw
-- How strongly a picture's file is packed, as its asker said; null: as the platform packs them.
set role onbrand_owner;

alter table app.generations
  add column output_compression integer check (output_compression between 0 and 100);
call app.keep_no_statistics('app.generations');
grant insert (output_compression) on app.generations to authenticated;
